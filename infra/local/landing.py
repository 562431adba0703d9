"""A Kafka message as the row that Snowflake's Kafka connector makes of it. Pure: messages in, Arrow out."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Protocol

import orjson
import pyarrow as pa

from infra.local.converters import Converter

COLUMNS = ("RECORD_METADATA", "RECORD_CONTENT")

_CREATE_TIME, _LOG_APPEND_TIME = 1, 2
_TIMESTAMP_NAMES = {_CREATE_TIME: "CreateTime", _LOG_APPEND_TIME: "LogAppendTime"}


class Message(Protocol):
    """What is read of a confluent_kafka.Message."""

    def topic(self) -> str | None:
        """Its topic."""

    def partition(self) -> int | None:
        """Its partition."""

    def offset(self) -> int | None:
        """Its offset."""

    def timestamp(self) -> tuple[int, int]:
        """Its kind of timestamp, and milliseconds since the epoch."""

    def key(self) -> bytes | str | None:
        """Its key, if any."""

    def value(self) -> bytes | str | None:
        """Its value; None is a tombstone."""

    def headers(self) -> Sequence[tuple[str, bytes | str | None]] | None:
        """Its headers, in order."""


def rows(messages: Iterable[Message], push_time_ms: int, convert: Converter | None = None) -> pa.Table:
    """Two columns of JSON text, RECORD_METADATA and RECORD_CONTENT, one row for each message.

    The value's text is passed on untouched, so that its numbers keep their digits; `convert` makes text of what is not JSON
    to begin with (`infra.local.converters`). A tombstone (no value) is a row
    whose content is NULL. A value that is not JSON becomes a JSON string of its text, as the real connector lands it
    under its StringConverter, and RECORD_METADATA gets `error`, which the real one never has, with the reason: its
    JSON converter would send such a message to a dead-letter queue or stop. A value or key that is not even UTF-8 is
    kept whole in `value_base64` or `key_base64`.
    """
    metadata: list[bytes] = []
    contents: list[bytes | None] = []
    for message in messages:
        described: dict[str, object] = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
        }
        kind, timestamp = message.timestamp()
        if kind in _TIMESTAMP_NAMES:
            described[_TIMESTAMP_NAMES[kind]] = timestamp
        key = message.key()
        if key is not None:
            described["key"] = _text(_bytes(key), "key", described)
        headers = message.headers()
        if headers:
            described["headers"] = {name: _header(value) for name, value in headers}
        described["SnowflakeConnectorPushTime"] = push_time_ms
        value = message.value()
        contents.append(None if value is None else _content(_bytes(value), described, convert))
        metadata.append(orjson.dumps(described))
    text = pa.string()
    return pa.table([pa.array(metadata, pa.binary()).cast(text), pa.array(contents, pa.binary()).cast(text)], COLUMNS)


def _content(value: bytes, described: dict[str, object], convert: Converter | None) -> bytes:
    if convert is not None:
        try:
            return convert(value)
        except ValueError as why:
            described["error"] = f"The value cannot be converted: {why}"
            return orjson.dumps(_text(value, "value", described))
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as why:
        described["error"] = f"The value is not JSON: {why}"
        return orjson.dumps(_text(value, "value", described))
    return value


def _text(raw: bytes, name: str, described: dict[str, object]) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        described[f"{name}_base64"] = base64.b64encode(raw).decode()
        return raw.decode(errors="replace")


def _header(value: bytes | str | None) -> str | None:
    return None if value is None else _bytes(value).decode(errors="replace")


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
