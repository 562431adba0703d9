"""A message becomes the row that Snowflake's Kafka connector makes of it, and nothing of it is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from infra.local import landing


@dataclass
class _Message:
    raw: bytes | None
    raw_key: bytes | None = None
    raw_headers: list[tuple[str, bytes | None]] | None = None
    time: tuple[int, int] = (1, 1_357_000_000_123)

    def topic(self) -> str:
        return "flights"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 41

    def timestamp(self) -> tuple[int, int]:
        return self.time

    def key(self) -> bytes | None:
        return self.raw_key

    def value(self) -> bytes | None:
        return self.raw

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.raw_headers


def _land(message: _Message) -> tuple[dict[str, Any], str | None]:
    (row,) = landing.rows([message], push_time_ms=7).to_pylist()
    return json.loads(row["RECORD_METADATA"]), row["RECORD_CONTENT"]


def test_json_passes_untouched() -> None:
    """The text is not parsed and written again, and the metadata has the names of the real connector."""
    text = '{"a": 10.357019999999999, "b": 1152921504606846977, "c": "\\u00e9"}'
    metadata, content = _land(_Message(text.encode(), b"k", [("trace", b"1"), ("none", None)]))
    assert content == text
    assert metadata == {
        "topic": "flights",
        "partition": 2,
        "offset": 41,
        "CreateTime": 1_357_000_000_123,
        "key": "k",
        "headers": {"trace": "1", "none": None},
        "SnowflakeConnectorPushTime": 7,
    }


def test_a_tombstone_has_no_content() -> None:
    """No value is NULL, and no error."""
    metadata, content = _land(_Message(None, b"k"))
    assert content is None
    assert "error" not in metadata


@pytest.mark.parametrize("value", [b"{oops", b"", b'{"a": NaN}', b'{"a": "\\ud800"}', b"1 2"])
def test_bad_json_is_kept_as_its_text(value: bytes) -> None:
    """A JSON string holds every character, and the metadata the reason."""
    metadata, content = _land(_Message(value))
    assert content is not None
    assert json.loads(content) == value.decode()
    assert metadata["error"].startswith("The value is not JSON: ")


def test_bytes_that_are_no_text_are_kept_whole() -> None:
    """What cannot be written as text is there in base64."""
    metadata, content = _land(_Message(b"\xff\xfe", b"\x80"))
    assert content == '"��"'
    assert (metadata["value_base64"], metadata["key_base64"]) == ("//4=", "gA==")


def test_the_brokers_own_time_is_named_as_such() -> None:
    """LogAppendTime is never taken for CreateTime."""
    metadata, _ = _land(_Message(b"1", time=(2, 5)))
    assert (metadata["LogAppendTime"], "CreateTime" in metadata) == (5, False)
