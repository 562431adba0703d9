"""What `tally sizes` reports: MEMORY USAGE of our keys, and of the same values as Feast's own store writes them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from redis import Redis

from feast_plugins.values import to_values
from ingestion.sizes import feast_hash, feast_key_length, protobuf_timestamp, protobuf_value, sizes
from tally.columns import column
from tally.dtypes import Dtype
from tests.serving_client import world
from tests.serving_client.world import DELAYS, PAIRS, PLANES, PROJECT


@pytest.mark.parametrize(
    ("dtype", "item"),
    [
        ("Float64", 0.1), ("Float64", 0.0), ("Float64", None), ("Float32", 0.5), ("Int64", -1), ("Int64", 300), ("Int64", 0),
        ("Int32", -5), ("Bool", True), ("Bool", False), ("String", "Zürich"), ("String", ""), ("Bytes", b"a|b"),
        ("UnixTimestamp", 1_385_856_000_000_000),
    ],
)  # fmt: skip
def test_values_are_feasts_bytes(dtype: Dtype, item: Any) -> None:
    """Every dtype is encoded as Feast's protobuf value is."""
    assert protobuf_value(dtype, item) == to_values(column(dtype, [item]))[0].SerializeToString()


@pytest.mark.parametrize("micros", [0, 1, 999_999, 1_000_000, 1_385_856_000_123_456])
def test_timestamps_are_feasts_bytes(micros: int) -> None:
    """As protobuf writes a Timestamp."""
    stamp = Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)
    assert protobuf_timestamp(micros) == stamp.SerializeToString()


def test_keys_are_as_long_as_feasts() -> None:
    """One join key and several, with characters that our keys escape."""
    one = serialize_entity_key(EntityKey(join_keys=["place"], entity_values=[Value(string_val="a|b\\")]), 3)
    key = world.key_of(PLANES, {"place": "a|b\\"})
    assert feast_key_length(PROJECT, PLANES, key) == len(one + PROJECT.encode())
    values = [Value(int64_val=7), Value(string_val="|x")]
    two = serialize_entity_key(EntityKey(join_keys=["code", "who"], entity_values=values), 3)
    assert feast_key_length(PROJECT, PAIRS, world.key_of(PAIRS, {"code": 7, "who": "|x"})) == len(
        two + PROJECT.encode()
    )


def about(one: float, other: Any) -> bool:
    """Whether two keys take as much memory: an allocator gives one of them up to 16 bytes that were too few to be left over."""
    return abs(one - other) <= 16


def test_sizes(redis: Redis) -> None:
    """Entities are counted and measured by view; nothing but our keys is left behind; other keys do not count."""
    for place in ("JFK", "LGA"):
        fields = {f.name: None for f in PLANES.fields} | {"v_Float64": 0.1, "v_String": "x" * 40}
        world.store_latest(redis, PLANES, [{"place": place, "at": 5_000_000, "a": 0, **fields}])
    world.store_tiles(
        redis,
        DELAYS,
        [{"place": "JFK", "at": 4, "partition": 0, "offset": 1, **{a.column: None for a in DELAYS.aggregations}}],
    )
    redis.set("other", "x" * 1000)
    before = set(redis.keys())
    found = {size.view: size for size in sizes(redis, world.PLAN)}
    assert set(redis.keys()) == before
    assert set(found) == {"planes", "delays"}
    assert [(size.entities, size.estimated) for size in (found["planes"], found["delays"])] == [(2, False), (1, False)]
    assert about(found["planes"].ours, redis.memory_usage(world.key_of(PLANES, {"place": "JFK"}), samples=0))
    values = [fields[f.name] for f in PLANES.fields]
    held = feast_hash(PLANES, 5_000_000, values)
    name = b"k" * feast_key_length(PROJECT, PLANES, world.key_of(PLANES, {"place": "JFK"}))
    redis.hset(name, mapping=dict(held))  # type: ignore[arg-type]
    redis.expire(name, 60)
    assert about(found["planes"].feast, redis.memory_usage(name, samples=0))
    assert len(held) == 1 + len(PLANES.fields)
    assert all(len(field) == struct.calcsize("<I") for field in list(held)[1:])
