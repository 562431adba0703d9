"""How many random examples property tests try: few by default, many in `make test-long`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines: these machines are shared, and a slow example is not a wrong one.
settings.register_profile("fast", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("fast"), max_examples=2_000)
settings.load_profile("fast")
