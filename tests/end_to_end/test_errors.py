from __future__ import annotations

import pytest
from feast import Field, OnDemandFeatureView, RequestSource
from feast.types import Float64

from feature_repo import transformations
from infra.repository import plan_path
from serving_client import FeatureClient
from tally.aggregates import FUNCTIONS
from tally.errors import DataError, DefinitionError, UnavailableError, UnknownServiceError
from tally.functions import as_udf
from tests.end_to_end.world import NOBODY, PROJECT, SERVICE, Ended, World, copied_repo


def assert_one_sentence(ended: Ended, *parts: str, code: int = 1, alone: bool = True) -> None:
    """The command ended with `code`, and its last line on stderr holds all `parts`; the only line, unless Feast warns."""
    lines = ended.err.strip().splitlines()

    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert "Traceback" not in ended.out
    for part in parts:
        assert part in lines[-1], ended.err
    assert len(lines) == 1 or not alone, ended.err


def test_an_aggregation_that_does_not_exist(world: World) -> None:
    """`feast apply` names the file, the view and the functions that exist, and leaves no plan behind."""
    path = world.folder / "aggregation" / "feature_repo"

    assert_one_sentence(
        world.outcome("bad aggregation"),
        f"{path / 'definitions.py'}: aircraft_arrivals:",
        "'median'",
        ", ".join(FUNCTIONS),
        alone=False,
    )
    assert not (path / "data" / "plan.json").exists()


def test_an_input_without_a_source(world: World) -> None:
    """Applying an on-demand view names its function, what it asks for, and what its sources have; the plan stays."""
    before = plan_path(world.repo).read_bytes()
    with world.feast() as store:
        view = OnDemandFeatureView(
            name="strongest_wind",
            sources=[RequestSource(name="flight_request", schema=[Field(name="distance", dtype=Float64)])],
            schema=[Field(name="strongest_wind", dtype=Float64)],
            **as_udf(transformations.strongest_wind),
        )
        with pytest.raises(
            DefinitionError,
            match=r"feature_repo.transformations.strongest_wind asks for 'wind_speed', .* have \['distance'\]; add a source",
        ):
            store.apply(view)

    assert plan_path(world.repo).read_bytes() == before


def test_a_service_that_does_not_exist(world: World) -> None:
    """The client and `tally export` list those that do."""
    out = str(world.folder / "never.parquet")
    ended = world.run("tally", "export", "departure_delay", "--labels", str(world.labels_path), "--out", out)

    assert_one_sentence(ended, "'departure_delay'", f"It has: {SERVICE}.", code=2)
    with pytest.raises(UnknownServiceError, match=f"'departure_delay'. It has: {SERVICE}."):
        FeatureClient.connect(world.settings.redis_url, project=PROJECT, service="departure_delay")


def test_redis_not_there(world: World) -> None:
    """Commands, the client and Feast name the address and the variable, but no password."""
    url = f"redis://worker:hush@{NOBODY}"
    for command in (("bootstrap",), ("stream", "--until-end")):
        ended = world.run("tally", *command, REDIS_URL=url)
        assert_one_sentence(ended, NOBODY, "REDIS_URL")
        assert "hush" not in ended.err
    with pytest.raises(UnavailableError, match=f"{NOBODY}.*REDIS_URL") as refused:
        FeatureClient.connect(url, project=PROJECT, service=SERVICE)
    assert "hush" not in str(refused.value)


def test_redis_not_there_for_feast(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feast's lookups and its `apply` raise our sentence, not a library's."""
    with world.feast() as store:
        monkeypatch.setenv("REDIS_URL", f"redis://{NOBODY}")
        request = {"origin": "JFK", "carrier": "B6", "tailnum": "N1", "distance": 1.0, "scheduled_departure": None}
        with pytest.raises(UnavailableError, match=f"{NOBODY}.*REDIS_URL"):
            store.get_online_features(store.get_feature_service(SERVICE), [request])
        with pytest.raises(UnavailableError, match=f"{NOBODY}.*REDIS_URL"):
            store.apply(store.get_entity("origin"))


def test_kafka_not_there(world: World) -> None:
    """`tally stream` names the brokers and the variable, once."""
    assert_one_sentence(world.outcome("no Kafka"), NOBODY, "KAFKA_BOOTSTRAP_SERVERS")


def test_labels_without_a_needed_column(world: World) -> None:
    """`tally export` and Feast name the column and what the service needs; nothing is written."""
    labels, out = world.folder / "keyless.parquet", world.folder / "keyless-out.parquet"
    without = world.labels.drop(columns="tailnum")
    without.to_parquet(labels)
    ended = world.run("tally", "export", SERVICE, "--labels", str(labels), "--out", str(out))

    assert_one_sentence(ended, "no column 'tailnum'", "tailnum (String)", "scheduled_departure (UnixTimestamp)")
    assert not out.exists()
    with world.feast() as store, pytest.raises(DataError, match="no column 'tailnum'"):
        store.get_historical_features(without, store.get_feature_service(SERVICE)).to_df()


def test_a_transformation_that_was_changed(world: World) -> None:
    """A worker with another version of a function than was applied is refused, and told both hashes."""
    changed = copied_repo(world.folder / "changed")
    path = changed / "transformations.py"
    path.write_text(path.read_text().replace("np.log1p(distance)", "np.log(1.0 + distance)"))
    connect = f"FeatureClient.connect({world.settings.redis_url!r}, project={PROJECT!r}, service={SERVICE!r})"
    ended = world.run("python", "-c", f"from serving_client import FeatureClient\n{connect}", repo=changed)
    applied = world.plan.function("haul").function.source_hash
    last = ended.err.strip().splitlines()[-1]

    assert ended.code == 1
    assert "DefinitionMismatchError: feature_repo.transformations:haul has source hash " in last
    here = last.partition("source hash ")[2].partition(" ")[0]
    assert f"the plan was made with {applied}" in last
    assert here != applied
    assert len(here) == len(applied)


def test_only_our_errors_lose_their_traceback(world: World) -> None:
    """Errors that are meant for the user are shortened in a `feast` command; faults, and programs of others, keep theirs."""
    program = (
        "import sys; sys.argv[0] = {name!r}; from feast_plugins.command_line import errors_as_sentences; "
        "from tally.errors import DataError; errors_as_sentences(); raise {error}"
    )
    ours, theirs, library = (
        world.run("python", "-c", program.format(name=name, error=error))
        for name, error in (
            ("/bin/feast", "DataError('No.')"),
            ("/bin/feast", "KeyError('x')"),
            ("x", "DataError('No.')"),
        )
    )

    assert (ours.code, ours.err) == (1, "No.\n")
    assert "Traceback" in theirs.err
    assert "Traceback" in library.err
