from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from tests.cli.conftest import Tally


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> Tally:
    """The command, where the environment has a Kafka and a Snowflake, which nobody asks for an answer."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("SNOWFLAKE_ACCOUNT", "elsewhere")
    return tally


def test_up_status_down(elsewhere: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` starts what the environment does not name, `status` shows it, `down` stops it, `--wipe` deletes its data."""
    monkeypatch.setenv("TALLY_HOME", str(tmp_path / "home"))
    before = elsewhere("status")
    try:
        up = elsewhere("up")
        running = elsewhere("status")
        address = next(word for word in running.out.split() if word.startswith("redis://"))
        answered = Redis.from_url(address).ping()
    finally:
        down = elsewhere("down", "--wipe")
    after = elsewhere("down")

    assert (before.code, up.code, running.code, down.code, after.code) == (0, 0, 0, 0, 0)
    assert "stopped" in before.out
    assert "KAFKA_BOOTSTRAP_SERVERS is set" in running.out
    assert answered is True
    assert f"at {address}" in down.out
    assert "No embedded service was running." in after.out


def test_state_lies_beside_the_repository(elsewhere: Tally, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TALLY_HOME, services of a repository keep their state beside it, wherever the command is typed."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    ended = elsewhere("up", "--repo", repo)

    assert ended.code == 0
    assert "Nothing to start" in ended.out
    assert not Path(".tally-test").exists()


@pytest.mark.parametrize("command", [("up",), ("status",), ("down", "--wipe")])
def test_a_repository_that_is_not_there(elsewhere: Tally, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A typing mistake starts, shows or wipes nothing: the folder above it may hold another repository's data."""
    (tmp_path / ".tally").mkdir()
    ended = elsewhere(*command, "--repo", tmp_path / "typo")

    assert ended.code == 2
    assert f"no feature repository at {tmp_path / 'typo'}" in ended.err
    assert (tmp_path / ".tally").exists()
