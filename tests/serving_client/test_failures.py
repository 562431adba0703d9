"""What the clients say when Redis, the plan, a view or the stored bytes are not as they should be."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import Any

import pytest
from redis import Redis

from serving_client import AsyncFeatureClient, FeatureClient
from serving_client.few_rows import FEW
from tally.errors import (
    DataError,
    DefinitionMismatchError,
    NotReadyError,
    StoredBytesError,
    TallyError,
    UnavailableError,
    UnknownServiceError,
)
from tally.layout import plan_key, services_key, views_key
from tally.plan import Function
from tests.serving_client import world
from tests.serving_client.test_rules import ASKED, EVENT, PLANE
from tests.serving_client.world import DELAYS, PAIRS, PLANES, PROJECT

OTHER = {**ASKED, "place": "EWR"}


def connect(url: str, service: str = "everything") -> FeatureClient:
    """Connects both ways, which must agree: the client, or the error that both raised."""

    async def there() -> None:
        async with await AsyncFeatureClient.connect(url, project=PROJECT, service=service) as client:
            assert client.plan == world.PLAN.for_service(service)

    try:
        client = FeatureClient.connect(url, project=PROJECT, service=service)
    except TallyError as error:
        with pytest.raises(type(error)) as raised:
            asyncio.run(there())
        same = isinstance(error, UnavailableError) or str(raised.value) == str(error)
        if not same:
            raise AssertionError(f"{raised.value} is not {error}") from error
        raise
    asyncio.run(there())
    return client


def test_connect(redis: Redis, redis_url: str) -> None:
    """With plan and views in Redis a client connects, sync and async, and answers."""
    world.publish(redis)
    with connect(redis_url) as client:
        assert client.get([ASKED], 0).to_dict()["both"] == ["JFK!"]
    with connect(redis_url, "small") as client:
        assert client.get([{"code": 1, "who": "x"}], 0).to_dict() == {"note": [None], "level": [None]}


def test_no_plan(redis: Redis, redis_url: str) -> None:
    """Without any plan the error says to run feast apply; a listed service without its plan too."""
    with pytest.raises(NotReadyError, match="no plan of project 'world'; run feast apply"):
        connect(redis_url)
    world.publish(redis)
    redis.delete(plan_key(PROJECT, "everything"))
    with pytest.raises(NotReadyError, match="lacks its plan; run feast apply"):
        connect(redis_url)


def test_unknown_service(redis: Redis, redis_url: str) -> None:
    """A service that does not exist: the error lists those that do."""
    world.publish(redis)
    assert redis.hlen(services_key(PROJECT)) == len(world.PLAN.services)
    with pytest.raises(UnknownServiceError, match=r"no feature service 'everythin'.*clocked, everything, small"):
        connect(redis_url, "everythin")


@pytest.mark.parametrize(
    ("view", "command"),
    [(PLANES, "feast materialize"), (PAIRS, "tally stream"), (DELAYS, "tally bootstrap delays")],
)
def test_view_that_was_never_loaded(redis: Redis, redis_url: str, view: Any, command: str) -> None:
    """A view without data: the error names it, the definition that is there instead if any, and the command."""
    others = [v for v in world.PLAN.views if v != view]
    world.publish(redis, views=others)
    with pytest.raises(NotReadyError, match=f"view {view.name} .*never loaded.*`{command}`"):
        connect(redis_url)
    redis.hset(views_key(PROJECT), f"{view.name}@{'ab' * 16}", "{}")
    with pytest.raises(NotReadyError, match=rf"view {view.name} .*another definition.*abababab.*`{command}`"):
        connect(redis_url)


def test_redis_that_is_not_there() -> None:
    """No server: the error has the address and REDIS_URL, and not the password; so has a lookup after it went away."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=rf"Redis at {where} .*REDIS_URL") as raised:
        connect(f"redis://joe:sesame@{where}/0")
    assert "sesame" not in str(raised.value)
    client = FeatureClient(Redis.from_url(f"redis://{where}"), world.ONE)
    for rows in ([ASKED], [ASKED] * 2, [ASKED] * (FEW + 1)):
        with pytest.raises(UnavailableError, match=where):
            client.get(rows)


def test_password_that_is_wrong(redis_url: str) -> None:
    """A refused login is UnavailableError, without the password."""
    with pytest.raises(UnavailableError, match="REDIS_URL") as raised:
        connect(redis_url.replace("://", "://joe:sesame@"))
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_time_out_that_is_none(redis_url: str, timeout: float) -> None:
    """A lookup needs some time, and an end."""
    with pytest.raises(DataError, match="timeout is"):
        FeatureClient.connect(redis_url, project=PROJECT, service="small", timeout=timeout)
    with pytest.raises(DataError, match="timeout is"):
        asyncio.run(AsyncFeatureClient.connect(redis_url, project=PROJECT, service="small", timeout=timeout))


def test_address_that_is_none() -> None:
    """Text that is not a Redis URL is refused without being repeated, for it may hold a password."""
    with pytest.raises(DataError, match="REDIS_URL is not a Redis address") as raised:
        connect("sesame@host")
    assert "sesame" not in str(raised.value)


def test_client_that_decodes(redis_url: str) -> None:
    """A redis client that turns bytes into text is refused at once."""
    with pytest.raises(DataError, match="decode_responses"):
        FeatureClient(Redis.from_url(redis_url, decode_responses=True), world.ONE)


def test_plan_of_many_services(redis: Redis) -> None:
    """A plan of more than one service is refused with the way out."""
    with pytest.raises(UnknownServiceError, match="for_service"):
        FeatureClient(redis, world.PLAN)


def test_other_source_of_a_function(redis: Redis) -> None:
    """A request function whose source is not the applied one is refused when the client is made."""
    changed = dataclasses.replace(
        world.ONE.functions[0], function=Function(world.ONE.functions[0].function.reference, "0" * 32)
    )
    plan = dataclasses.replace(world.ONE, functions=(changed, *world.ONE.functions[1:]))
    with pytest.raises(DefinitionMismatchError, match="combine"):
        FeatureClient(redis, plan)


def _stored(redis: Redis, view: Any) -> bytes:
    if view is PLANES:
        world.store_latest(redis, PLANES, [{**PLANE, "v_String": "text", "v_Bytes": b"bytes"}])
        return world.key_of(PLANES, PLANE)
    world.store_tiles(redis, DELAYS, [{**EVENT, "at": 0, "offset": 1}])
    return world.key_of(DELAYS, EVENT)


@pytest.mark.parametrize("view", [PLANES, DELAYS], ids=["latest", "tiles"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v[:-1],
        lambda v: v + b"x",
        lambda v: v[:5],
        lambda v: v[:0],
        lambda v: b"\x09" + v[1:],
        lambda v: b"hello, I am some other value".ljust(len(v), b"!"),
    ],
    ids=["truncated", "longer", "head alone", "empty", "other format", "foreign"],
)
def test_damaged_bytes(redis: Redis, view: Any, damage: Any) -> None:
    """Bytes that are not a value of the view are refused, naming the key, alone and among others."""
    key = _stored(redis, view)
    value = redis.get(key)
    assert isinstance(value, bytes)
    redis.set(key, damage(value))
    client = FeatureClient(redis, world.ONE)
    for rows in ([ASKED], [OTHER, ASKED], [OTHER] * FEW + [ASKED]):
        with pytest.raises(StoredBytesError, match="JFK"):
            client.get(rows, 0)


def test_text_that_is_not_utf8(redis: Redis) -> None:
    """A string whose bytes are not UTF-8 is refused."""
    key = _stored(redis, PLANES)
    value = redis.get(key)
    assert isinstance(value, bytes)
    redis.set(key, value.replace(b"text", b"\xff\xff\xff\xff"))
    client = FeatureClient(redis, world.ONE)
    for rows in ([ASKED], [OTHER, ASKED], [OTHER] * FEW + [ASKED]):
        with pytest.raises(StoredBytesError, match=r"JFK.*UTF-8"):
            client.get(rows, 0)


@pytest.mark.parametrize("view", [PLANES, DELAYS], ids=["latest", "tiles"])
def test_bytes_of_another_definition(redis: Redis, view: Any) -> None:
    """A value that carries another definition's tag is refused, naming the key and both tags."""
    key = _stored(redis, view)
    redis.setrange(key, 1, b"\xab" * 8)
    client = FeatureClient(redis, world.ONE)
    for rows in ([ASKED], [OTHER, ASKED], [OTHER] * FEW + [ASKED]):
        with pytest.raises(DefinitionMismatchError, match=f"JFK.*{'ab' * 8}.*{view.tag.hex()}"):
            client.get(rows, 0)


def test_sum_of_integers_too_large(redis: Redis) -> None:
    """A window whose sum of integers leaves int64 is refused by name, not wrapped around."""
    events = [{**EVENT, "at": 0, "offset": i, "v_Int64": 2**62} for i in range(2)]
    world.store_tiles(redis, DELAYS, events)
    client = FeatureClient(redis, world.ONE)
    for rows in ([ASKED], [ASKED] * 2, [ASKED] * (FEW + 1)):
        with pytest.raises(DataError, match="sum_Int64_short: a sum of integers is outside int64"):
            client.get(rows, 0)
