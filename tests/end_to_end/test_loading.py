from __future__ import annotations

from infra.repository import plan_path
from serving_client import FeatureClient
from tally.layout import LATEST_HEADER, key_prefix
from tally.time import HOUR, from_datetime
from tests.end_to_end.world import ENDS, LATE_REPORT, PROJECT, SERVICE, World


def weather_key(world: World, airport: str) -> bytes:
    """Where an airport's weather is stored."""
    view = world.plan.view("origin_weather")
    return key_prefix(PROJECT, view.name, view.hash) + airport.encode()


def test_materialize_twice(world: World) -> None:
    """`feast materialize` of what is there already changes no stored byte, of latest rows as of windows."""
    stored = world.stored["materialized"]

    assert stored == world.stored["materialized again"]
    assert {key.split(b"@")[0].split(b"/")[1].decode() for key in stored} == {view.name for view in world.plan.views}


def test_materializing_leaves_the_plan(world: World) -> None:
    """Feast writes its registry after each materialization; the definitions in it, and so all hashes, stay."""
    assert plan_path(world.repo).read_bytes() == world.applied


def test_materialize_incremental(world: World) -> None:
    """`feast materialize-incremental` brings a report that is older than the last materialization but arrived after it."""
    airport, moment = LATE_REPORT
    key = weather_key(world, airport)
    before, after = world.stored["materialized"], world.stored["incremental"]

    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {key}
    assert LATEST_HEADER.unpack_from(before[key])[2] == from_datetime(moment) - HOUR
    assert LATEST_HEADER.unpack_from(after[key])[2] == from_datetime(moment)


def test_bootstrap_then_materialize(world: World) -> None:
    """`tally bootstrap` says how many keys it wrote for each stream view, `feast materialize` writes the same ones."""
    for view in world.plan.views:
        keys = sum(key.startswith(view.prefix(PROJECT)) for key in world.stored["materialized"])
        assert f"gave {keys:,} keys" in line_of(world, "materialize", f"{view.name}: ")
        if view.stream:
            assert line_of(world, "bootstrap", view.name) == f"{view.name}: {keys:,} keys"


SOURCES = ("flights_departures ", "flights_arrivals ")


def test_stream_until_end(world: World) -> None:
    """`tally stream` goes on where `tally bootstrap` ended, reads a day and ends; every message is accounted for."""
    for view in (view for view in world.plan.views if view.stream):
        messages, applied, duplicates, too_late, refused = map(number, line_of(world, "stream", view.name).split()[1:])
        assert messages == applied + duplicates + too_late + refused
        assert duplicates == 0
        assert refused == {"origin_departures": 2, "carrier_departures": 1, "aircraft_arrivals": 0}[view.name]
    landed = sum(number(line_of(world, "ingest streamed", name).split()[1]) for name in SOURCES)
    read = number(line_of(world, "stream", " messages in ").split()[0])

    assert read == landed + 1  # the one that is not JSON was not landed as a row
    assert number(line_of(world, "ingest streamed", "flights_departures ").split()[3]) == 1


def test_the_store_is_not_ahead_of_its_end(world: World) -> None:
    """A lookup as of the end sees all messages up to then, and says so where something later had arrived."""
    with FeatureClient.connect(world.settings.redis_url, project=PROJECT, service=SERVICE, timeout=60) as client:
        request = {
            "origin": "EWR",
            "carrier": "UA",
            "tailnum": "N14228",
            "distance": 1400.0,
            "scheduled_departure": ENDS,
        }
        now, before = client.get([request], from_datetime(ENDS)), client.get([request], from_datetime(ENDS) - 24 * HOUR)

    assert not now.ahead.any()
    assert before.ahead.all()


def line_of(world: World, name: str, part: str) -> str:
    """The only line that a command printed with `part` in it."""
    lines = [line.strip() for line in world.outcome(name).out.splitlines() if part in line and "from \x1b" not in line]
    lines = [line for line in lines if not line.endswith(":")]
    assert len(lines) >= 1, world.outcome(name)
    return lines[0]


def number(text: str) -> int:
    """A number with commas."""
    return int(text.replace(",", ""))
