from __future__ import annotations

import signal

import pytest

from tally_cli.stream import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_a_second_one_ends(number: signal.Signals) -> None:
    """The first SIGINT or SIGTERM sets the event and gives both signals back, so that the second ends the process."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        asked_before = stop.is_set()
        signal.raise_signal(number)
        restored = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    assert (asked_before, stop.is_set()) == (False, True)
    assert restored == before


def test_signals_are_given_back() -> None:
    """After the run the handlers are those from before, also when nobody asked."""
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals():
        inside = signal.getsignal(signal.SIGTERM)

    assert inside is not before
    assert signal.getsignal(signal.SIGTERM) is before
