from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.local import LocalServiceError, embedded
from ingestion import kafka, replay
from tally.errors import DataError, TallyError, UnavailableError, UnknownServiceError
from tally_cli import TERMINATED, app, errors
from tests.cli.conftest import Ended, Tally

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis server, for commands that fail later than that."""
    with embedded(tmp_path_factory.mktemp("redis"), ("redis",)) as settings:
        yield settings.redis_url


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    """Stderr is one line that holds all `parts`: no traceback, no second thoughts."""
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


@pytest.mark.parametrize("command", [("ingest",), ("bootstrap",), ("stream",)])
def test_without_a_plan(tally: Tally, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Before `feast apply` a command says to run it: exit code 1."""
    ended = tally(*command, "--repo", tmp_path)

    assert ended.code == 1
    assert_one_sentence(ended, str(tmp_path / "data" / "plan.json"), f"feast -c {tmp_path} apply")


def test_a_file_that_is_no_plan(tally: Tally, repo: Path) -> None:
    """A plan that does not parse is named, with what makes it anew."""
    path = repo / "data" / "plan.json"
    path.write_text("{")
    ended = tally("ingest", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, str(path), "apply")


def test_an_unknown_table_lists_those_that_exist(tally: Tally, repo: Path) -> None:
    """`tally ingest` of a table that no source has: exit code 2, with sources and tables."""
    ended = tally("ingest", "rides", "trips", "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "'trips'", "rides (RIDES)", "weather (HOURLY_WEATHER)")


@pytest.mark.parametrize("command", [("bootstrap", "weather"), ("stream", "--view", "weather")])
def test_a_view_that_is_not_streamed_lists_those_that_are(tally: Tally, repo: Path, command: tuple[str, ...]) -> None:
    """Bootstrap and stream take stream views only, and list them: exit code 2."""
    ended = tally(*command, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "'weather'", "rides_by_city")


def test_an_unknown_service_lists_those_that_exist(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """`tally export` of a service that was never defined: exit code 2, with the services."""
    ended = tally("export", "tip", "--labels", labels(tmp_path), "--out", tmp_path / "t.parquet", "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "'tip'", "It has: fare.")


def test_labels_without_a_needed_column(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """A label file that lacks a key names the file's missing column; nothing is written."""
    out = tmp_path / "t.parquet"
    ended = tally("export", "fare", "--labels", labels(tmp_path, "event_timestamp"), "--out", out, "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, "city")
    assert not out.exists()


def test_labels_that_are_not_there_or_not_parquet(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """A path that leads nowhere is wrong usage; a file of another kind is bad data, and named."""
    out = ("--out", tmp_path / "t.parquet", "--repo", repo)
    nowhere = tally("export", "fare", "--labels", tmp_path / "none.parquet", *out)
    text = tmp_path / "labels.csv"
    text.write_text("city,event_timestamp\n")
    other = tally("export", "fare", "--labels", text, *out)

    assert nowhere.code == 2
    assert "none.parquet" in nowhere.err
    assert other.code == 1
    assert_one_sentence(other, str(text), "Parquet")


def test_a_place_for_the_training_set_that_is_not_there(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """A folder that does not exist is noticed before the work, not after it."""
    out = tmp_path / "missing" / "t.parquet"
    ended = tally("export", "fare", "--labels", labels(tmp_path), "--out", out, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, str(out.parent))


def test_an_export_that_is_asked_for_half(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """Without a service or labels, or with things that a manifest already says: wrong usage, with what to type."""
    out = ("--out", tmp_path / "t.parquet", "--repo", repo)
    manifest = tmp_path / "old.manifest.json"
    manifest.write_text("{}")
    again = ("--from-manifest", manifest)
    asked: dict[str, tuple[object, ...]] = {
        "Name the feature SERVICE": (),
        "--labels L.parquet": ("fare",),
        "leave SERVICE out": ("fare", *again),
        "leave --visibility out": ("--visibility", "as_served", *again),
        "leave --offline-version out": ("--offline-version", "3", *again),
    }
    for said, options in asked.items():
        ended = tally("export", *options, *out)
        assert ended.code == 2
        assert_one_sentence(ended, said)


def test_a_file_that_is_no_manifest(tally: Tally, repo: Path, tmp_path: Path) -> None:
    """`--from-manifest` of some other JSON, or of the export itself, says which file to give."""
    for content in ("{}", "PAR1"):
        other = tmp_path / "t.parquet"
        other.write_text(content)
        ended = tally("export", "--from-manifest", other, "--out", tmp_path / "again.parquet", "--repo", repo)
        assert ended.code == 1
        assert_one_sentence(ended, str(other), "T.parquet.manifest.json")


def test_an_export_from_tables_that_were_never_ingested(
    tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the table and the command that makes it; nothing is written."""
    monkeypatch.setenv("TALLY_OFFLINE_URI", str(tmp_path / "offline"))
    out = tmp_path / "t.parquet"
    ended = tally("export", "fare", "--labels", labels(tmp_path), "--out", out, "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, "rides", "tally ingest")
    assert not out.exists()


@pytest.mark.parametrize("command", ["bootstrap", "stream --until-end"])
def test_redis_not_there(tally: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A Redis that nobody answers at is named, with its variable; its password is not."""
    monkeypatch.setenv("REDIS_URL", f"redis://worker:hush@{NOBODY}")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", NOBODY)
    ended = tally(*command.split(), "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, NOBODY, "REDIS_URL")
    assert "hush" not in ended.err


@pytest.mark.parametrize("command", ["bootstrap", "stream"])
def test_an_address_that_is_none(tally: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A REDIS_URL without a scheme is explained by its form, and not repeated: it may hold a password. A worker does not wait."""
    monkeypatch.setenv("REDIS_URL", "worker:hush@cache")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", NOBODY)
    ended = tally(command, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "REDIS_URL", "redis://")
    assert "hush" not in ended.err


def test_kafka_not_there(tally: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """Brokers that nobody answers at are named, with their variable."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", NOBODY)
    monkeypatch.setattr(kafka, "KAFKA_SECONDS", 1.0)
    ended = tally("stream", "--until-end", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, NOBODY, "KAFKA_BOOTSTRAP_SERVERS")


def test_kafka_not_there_for_dead_letters(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Only the error speaks: librdkafka's own log, twenty lines a second, does not scroll it away."""
    monkeypatch.setattr(replay, "KAFKA_SECONDS", 1.0)
    with pytest.raises(UnavailableError, match=f"{NOBODY}.*KAFKA_BOOTSTRAP_SERVERS"):
        replay.read_letters({"bootstrap.servers": NOBODY}, ["rides"], "taxi")

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("KAFKA_SECURITY_PROTOCOL", "SASL_TLS", "SASL_TLS"),
        ("KAFKA_SESSION_TIMEOUT_MS", "10s", "KAFKA_SESSION_TIMEOUT_MS"),
        ("KAFKA_SESSION_TIMEOUT_MS", "0", "KAFKA_SESSION_TIMEOUT_MS"),
    ],
)
def test_a_setting_of_kafka_that_is_none(
    tally: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """A variable without a meaning is named, or its value; passwords are not."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", NOBODY)
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hush")
    monkeypatch.setenv(variable, value)
    ended = tally("dlq", "list", "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, said, "KAFKA_")
    assert "hush" not in ended.err


@pytest.mark.parametrize("port", ["no port", "-5", "65536"])
def test_a_port_of_snowflake_that_is_none(tally: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    """It is named before anybody is called there."""
    monkeypatch.setenv("SNOWFLAKE_ACCOUNT", "org-account")
    monkeypatch.setenv("SNOWFLAKE_PORT", port)
    ended = tally("ingest", "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "SNOWFLAKE_PORT")


@pytest.mark.parametrize("command", ["bootstrap", "export"])
def test_an_offline_store_of_a_kind_that_is_none(
    tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str, command: str
) -> None:
    """An address that nothing is known of is no store that lacks tables: it says what one looks like."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("TALLY_OFFLINE_URI", "s4://bucket/store")
    asked = ("fare", "--labels", labels(tmp_path), "--out", tmp_path / "t.parquet") if command == "export" else ()
    ended = tally(command, *asked, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, "TALLY_OFFLINE_URI", "s4://bucket/store", "s3://")


def test_a_store_that_refuses_is_one_line(
    tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What delta-rs draws as a coloured tree of reasons is said on one line."""
    monkeypatch.setenv("TALLY_OFFLINE_URI", "abfss://container")
    ended = tally("export", "fare", "--labels", labels(tmp_path), "--out", tmp_path / "t.parquet", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, "TALLY_OFFLINE_URI", "Account must be specified")
    assert "\x1b" not in ended.err


@pytest.mark.parametrize("content", [None, "no key"])
def test_a_private_key_that_is_none(
    tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A key file that is absent or of another kind is named, with its variable."""
    key = tmp_path / "key.p8"
    if content is not None:
        key.write_text(content)
    monkeypatch.setenv("SNOWFLAKE_ACCOUNT", "org-account")
    monkeypatch.setenv("SNOWFLAKE_USER", "tally")
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE", str(key))
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_PASSPHRASE", "hush")
    ended = tally("ingest", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, str(key), "SNOWFLAKE_PRIVATE_KEY_FILE")
    assert "hush" not in ended.err


def test_a_home_that_cannot_be_made(tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded services without a place for their state say which variable names another."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TALLY_HOME", str(tmp_path / "file" / "home"))
    ended = tally("up", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, str(tmp_path / "file" / "home"), "TALLY_HOME")


def test_bootstrap_before_ingest(
    tally: Tally, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """Windows cannot come from an offline table that is not there: says what to run."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("TALLY_OFFLINE_URI", str(tmp_path / "offline"))
    ended = tally("bootstrap", "--repo", repo)

    assert ended.code == 1
    assert_one_sentence(ended, "tally ingest rides")


def test_wrong_options_are_wrong_usage(tally: Tally, repo: Path) -> None:
    """A missing or unknown option ends with 2."""
    assert tally("export", "fare", "--repo", repo).code == 2
    assert tally("ingest", "--everything", "--repo", repo).code == 2
    assert tally("inject").code == 2
    assert tally("stream", "--metrics-port", "99999", "--repo", repo).code == 2


@pytest.mark.parametrize(("option", "value"), [("--memory", "5XB"), ("--memory", "1MB"), ("--offline-version", "then")])
def test_an_option_without_a_meaning_is_wrong_usage(
    tally: Tally, repo: Path, tmp_path: Path, option: str, value: str
) -> None:
    """A size or a version that is none is repeated, with what one looks like."""
    out = ("--labels", labels(tmp_path), "--out", tmp_path / "t.parquet")
    ended = tally("export", "fare", *out, option, value, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, value, "such as" if value != "1MB" else "at least")


@pytest.mark.parametrize(("option", "value", "known"), [("--view", "tips", "rides_by_city"), ("--topic", "r", "rides")])
@pytest.mark.parametrize("command", ["list", "replay"])
def test_dead_letters_of_what_does_not_exist(
    tally: Tally, repo: Path, command: str, option: str, value: str, known: str
) -> None:
    """A view or topic that the project does not have is wrong usage, noticed before Kafka is asked."""
    ended = tally("dlq", command, option, value, "--repo", repo)

    assert ended.code == 2
    assert_one_sentence(ended, repr(value), known)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("Row 3 is odd."), 1),
        (LocalServiceError("Redis did not come up."), 1),
        (UnknownServiceError("No such service."), 2),
        (ModuleNotFoundError("No module named 'dask'", name="dask.dataframe"), 1),
    ],
)
def test_errors_meant_for_the_user(
    tally: Tally, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, code: int
) -> None:
    """Each becomes one sentence and its exit code, and with --debug its traceback."""
    monkeypatch.setattr(app, "app", lambda **_: (_ for _ in ()).throw(error))
    ended = tally("status", "--repo", tmp_path)
    monkeypatch.setenv(errors.DEBUG_VARIABLE, "1")

    assert ended.code == code
    assert_one_sentence(ended)
    with pytest.raises(type(error)):
        tally("status", "--repo", tmp_path)


def test_a_missing_library_names_its_extra() -> None:
    """An import that an extra would have brought says which; one of ours is a fault, and stays one."""
    assert "'tally-feature-store[training]'" in str(errors.sentence(ModuleNotFoundError(name="dask.dataframe")))
    assert errors.sentence(ModuleNotFoundError(name="tally.nothing")) is None


def test_a_fault_of_ours_keeps_its_traceback(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was not raised for the user is raised on."""

    def broken(**_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(app, "app", broken)

    with pytest.raises(KeyError):
        tally("status")


def test_notes_are_told_too() -> None:
    """What else failed stands on lines of its own below the sentence."""
    error = TallyError("Redis did not come up.")
    error.add_note("Besides: Kafka did not either.")

    assert errors.sentence(error) == "Redis did not come up.\nBesides: Kafka did not either."


def labels(folder: Path, *names: str) -> Path:
    """A Parquet file of one label row with columns `names`, by default those that service `fare` needs."""
    row = {"city": pa.array(["Rome"]), "event_timestamp": pa.array([0], pa.timestamp("us", "UTC"))}
    path = folder / "labels.parquet"
    pq.write_table(pa.table({name: row[name] for name in names or row}), path)
    return path


WAITS = """
import tempfile, threading
import tally_cli
from tally_cli import app

@app.app.command()
def wait() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(folder, flush=True)
        threading.Event().wait()

tally_cli.main()
"""


def test_sigterm_leaves_as_ctrl_c_does() -> None:
    """What a command had written aside is removed, and the exit code says what ended it."""
    with subprocess.Popen([sys.executable, "-c", WAITS, "wait"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        there = folder.is_dir()
        process.terminate()
    assert there
    assert process.returncode == TERMINATED == 143
    assert not folder.exists()
