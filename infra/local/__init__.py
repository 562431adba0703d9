"""Redis, Kafka and Snowflake on this machine, without root and without containers, where the environment names none.

settings = infra.local.ensure(Settings(), "redis", "kafka")
"""

from infra.local.ephemeral import embedded
from infra.local.errors import LocalServiceError
from infra.local.services import PartStatus, Services, down, ensure, status, up

__all__ = ["LocalServiceError", "PartStatus", "Services", "down", "embedded", "ensure", "status", "up"]
