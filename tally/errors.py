"""Errors that a user can act on: each message says what was wrong, where, and what to do."""


class TallyError(Exception):
    """Base of every error that Tally raises on purpose; its text is meant for the user, without a traceback."""


class DefinitionError(TallyError):
    """A Feast definition that cannot be compiled into a plan."""


class DataError(TallyError):
    """Rows, labels or messages that break the rules (missing column, wrong type, value out of range)."""


class ArgumentError(DataError):
    """An argument without a meaning, whatever the data: a size that is none, a version that no instant is."""


class StoredBytesError(TallyError):
    """Bytes read from the online store that do not decode; names the key."""


class DefinitionMismatchError(TallyError):
    """Data or code that carries another definition's hash than the plan in use."""


class UnknownServiceError(TallyError):
    """A feature service that the plan does not have; the message lists those that exist."""


class UnavailableError(TallyError):
    """A service (Redis, Kafka, Snowflake) that cannot be reached or refuses us."""


class NotReadyError(TallyError):
    """Something that an earlier command makes (plan, offline table, view in Redis) is not there yet."""


class SupersededError(TallyError):
    """A worker's definition is gone from the store, and it cannot serve the one that was applied since."""
