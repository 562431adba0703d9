"""Hand-made histories in which something came late: by event time it leaks into the label, as served it does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest

from ingestion.delta import open_version
from ingestion.reading import unknown_arrivals
from tally.errors import NotReadyError
from tally.served import EVIDENCE_COLUMN
from tally.time import HOUR, MINUTE, from_datetime
from tests.oracle import Event
from tests.training import stores
from tests.training.stores import PLAN, SERVICE, departure, weather
from training import TrainingSet, training_set

NOON = from_datetime(datetime(2013, 3, 1, 12, tzinfo=UTC))


@pytest.fixture
def offline_uri(tmp_path: Any) -> str:
    """An offline store."""
    return str(tmp_path)


def build(uri: str, visibility: Any, at: int = NOON, evidence: Any = None) -> TrainingSet:
    """The set of one label at `at`."""
    labels = pd.DataFrame(
        {
            "carrier": ["AA"],
            "origin": ["JFK"],
            "dest": ["JFK"],
            "limit": [0.0],
            "event_timestamp": pd.to_datetime([at], unit="us", utc=True),
        }
    )
    if evidence is not None:
        labels[EVIDENCE_COLUMN] = json.dumps(evidence)
    return training_set(PLAN, labels, service=SERVICE, offline_uri=uri, visibility=visibility)


def ask(uri: str, visibility: Any, at: int = NOON, evidence: Any = None) -> dict[str, Any]:
    """What one label at `at` is told."""
    found = build(uri, visibility, at, evidence)
    return {name: column.to_list()[0] for name, column in found.columns.items()}


def land(uri: str, messages: list[Event], readings: list[Event]) -> None:
    """Both tables."""
    stores.land_departures(uri, messages)
    stores.land_weather(uri, readings)


REPORTED = weather("JFK", NOON - HOUR, NOON - HOUR, 10.0, 1, "clear")


def test_a_message_that_was_under_way(offline_uri: str) -> None:
    """A departure at 11:50 was reported at 12:05: at noon nobody knew of it, at 12:05 everybody did."""
    late = departure("AA", NOON - 10 * MINUTE, 90.0, 0, 1, NOON + 5 * MINUTE)
    land(offline_uri, [departure("AA", NOON - 30 * MINUTE, 5.0, 0, 0, NOON - 30 * MINUTE), late], [REPORTED])
    leaked, served = ask(offline_uri, "event_time"), ask(offline_uri, "as_served")
    assert (leaked["delay_count_1h"], leaked["delay_max_6h"]) == (2, 90.0)
    assert (served["delay_count_1h"], served["delay_max_6h"]) == (1, 5.0)
    assert ask(offline_uri, "as_served", NOON + 5 * MINUTE - 1)["delay_count_1h"] == 1
    assert ask(offline_uri, "as_served", NOON + 5 * MINUTE)["delay_count_1h"] == 2


def test_a_correction_that_came_later(offline_uri: str) -> None:
    """At noon the store held the first report of 11:00; its correction was written at 12:30."""
    corrected = weather("JFK", NOON - HOUR, NOON + 30 * MINUTE, -5.0, 2, "snow")
    land(offline_uri, [departure("AA", NOON - HOUR, 5.0, 0, 0, NOON)], [REPORTED, corrected])
    assert [ask(offline_uri, "event_time")[name] for name in ("temp", "sky")] == [-5.0, "snow"]
    assert [ask(offline_uri, "as_served")[name] for name in ("temp", "sky")] == [10.0, "clear"]
    assert ask(offline_uri, "as_served", NOON + 30 * MINUTE)["sky"] == "snow"


def test_a_row_that_came_after_its_time_to_live(offline_uri: str) -> None:
    """The newest row that had arrived has expired by noon: null, although by event time there is a fresh one."""
    old = weather("JFK", NOON - 7 * HOUR, NOON - 7 * HOUR, 3.0, 3, "fog")
    fresh = weather("JFK", NOON - HOUR, NOON + 1, 10.0, 4, "clear")
    land(offline_uri, [departure("AA", NOON - HOUR, 5.0, 0, 0, NOON)], [old, fresh])
    assert ask(offline_uri, "event_time")["reading"] == 4
    assert ask(offline_uri, "as_served")["reading"] is None


def test_messages_without_a_create_time_count_from_their_landing(offline_uri: str) -> None:
    """Where Kafka's time is missing, the row counts from when it lay in the warehouse; without that, from its event."""
    sent = [departure("AA", NOON - minutes * MINUTE, 5.0, 0, minutes, NOON) for minutes in (50, 40, 30, 20)]
    stores.land_departures(
        offline_uri, sent, created=[NOON - HOUR, None, None, None], landed=[None, NOON, NOON + 1, None]
    )
    stores.land_weather(offline_uri, [REPORTED])
    assert ask(offline_uri, "event_time")["delay_count_1h"] == 4
    assert ask(offline_uri, "as_served")["delay_count_1h"] == 3
    assert ask(offline_uri, "as_served", NOON + 1)["delay_count_1h"] == 4
    assert unknown_arrivals(PLAN, PLAN.view("delays"), open_version(offline_uri, "departures", None)) == {
        "no CreateTime: when it had landed was taken": 2,
        "no CreateTime and no time of landing: the event time was taken": 1,
    }
    assert unknown_arrivals(PLAN, PLAN.view("weather_now"), open_version(offline_uri, "weather", None)) == {}


def test_what_is_not_known_is_recorded(offline_uri: str) -> None:
    """As served without evidence, manifest and notes say which rows do not tell their arrival; else there is nothing to say."""
    sent = [departure("AA", NOON - minutes * MINUTE, 5.0, 0, minutes, NOON) for minutes in (50, 40)]
    stores.land_departures(offline_uri, sent, created=[NOON, None])
    stores.land_weather(offline_uri, [REPORTED])
    found = build(offline_uri, "as_served")
    assert found.manifest["unknown"] == {"delays": {"no CreateTime: when it had landed was taken": 1}}
    assert found.notes == (
        "delays: when 1 of its rows arrived is not known (no CreateTime: when it had landed was taken).",
    )
    evidence = {"delays": {"fences": {"0": 50}}, "weather_now": None, "there": None}
    for known in (build(offline_uri, "event_time"), build(offline_uri, "as_served", evidence=evidence)):
        assert (known.manifest["unknown"], known.notes) == ({}, ())


def test_a_worker_that_lagged_is_known_by_its_evidence(offline_uri: str) -> None:
    """The second message had arrived by noon, but the lookup at noon had not seen it; its evidence says so."""
    sent = [departure("AA", NOON - minutes * MINUTE, 5.0, 0, 50 - minutes, NOON - MINUTE) for minutes in (50, 10)]
    land(offline_uri, sent, [REPORTED])
    nothing = {"weather_now": None, "there": None}
    assert ask(offline_uri, "as_served")["delay_count_1h"] == 2
    assert ask(offline_uri, "as_served", evidence={"delays": {"fences": {"0": 39}}, **nothing})["delay_count_1h"] == 1
    assert ask(offline_uri, "as_served", evidence={"delays": {"fences": {"0": 40}}, **nothing})["delay_count_1h"] == 2


@pytest.mark.parametrize(
    ("fences", "said"),
    [({"0": 41}, "partition 0 .* up to offset 41, .* ends at 40"), ({"3": 0}, "partition 3 .* ends at -1")],
)
def test_evidence_of_messages_that_have_not_landed(offline_uri: str, fences: dict[str, int], said: str) -> None:
    """The stream runs ahead of the warehouse: labels that were served from more than there is are not replayed from less."""
    sent = [departure("AA", NOON - minutes * MINUTE, 5.0, 0, 50 - minutes, NOON - MINUTE) for minutes in (50, 10)]
    land(offline_uri, sent, [REPORTED])
    evidence = {"delays": {"fences": fences}, "weather_now": None, "there": None}
    with pytest.raises(NotReadyError, match=f"{said}; run: tally ingest departures"):
        ask(offline_uri, "as_served", evidence=evidence)
    assert ask(offline_uri, "event_time", evidence=evidence)["delay_count_1h"] == 2
