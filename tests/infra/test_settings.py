"""The environment is read into one object, and its secrets stay in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.settings import Settings


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty string is how many deployments leave a variable out."""
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("SNOWFLAKE_PORT", "")
    assert Settings().redis_url == ""
    assert Settings().snowflake_port is None


def test_kafka_config_has_only_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Librdkafka keeps its own default for the rest."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9093")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "sesame")
    assert Settings().kafka_config() == {
        "bootstrap.servers": "broker:9093",
        "security.protocol": "SASL_SSL",
        "sasl.password": "sesame",
    }


def test_a_worker_says_when_a_silent_one_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is set; producers have no sessions."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9093")
    assert Settings().kafka_worker_config() == Settings().kafka_config()
    monkeypatch.setenv("KAFKA_SESSION_TIMEOUT_MS", "6000")
    assert Settings().kafka_worker_config() == {"bootstrap.servers": "broker:9093", "session.timeout.ms": "6000"}
    assert Settings().kafka_config() == {"bootstrap.servers": "broker:9093"}


def test_snowflake_with_a_key_pair_checks_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the emulator leaks into a real connection."""
    monkeypatch.setenv("SNOWFLAKE_ACCOUNT", "org-account")
    monkeypatch.setenv("SNOWFLAKE_USER", "tally")
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE", "key.p8")
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_PASSPHRASE", "sesame")
    assert Settings().snowflake_connect_args() == {
        "account": "org-account",
        "user": "tally",
        "private_key_file": "key.p8",
        "private_key_file_pwd": "sesame",
        "session_parameters": {"TIMEZONE": "UTC"},
    }


def test_secrets_are_not_shown() -> None:
    """Not even the password inside REDIS_URL."""
    settings = Settings(redis_url="redis://:sesame@host:6379/0", kafka_sasl_password=SecretStr("sesame"))
    assert "sesame" not in repr(settings)


def test_the_offline_store_lies_in_the_home_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an absolute path, so that every process finds the same one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALLY_HOME", raising=False)
    monkeypatch.delenv("TALLY_OFFLINE_URI", raising=False)
    assert Settings().offline_uri() == str(tmp_path / ".tally" / "offline")
    assert Settings(tally_offline_uri="s3://bucket/store").offline_uri() == "s3://bucket/store"
