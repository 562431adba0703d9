"""The environment as one typed object. Every room that needs an address asks here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tally.errors import ArgumentError

_NO_SECRET = SecretStr("")


class Settings(BaseSettings):
    """Addresses and credentials, read from environment variables of the same names in upper case.

    An empty or missing variable means "not set". Values given to the constructor win over the environment.
    Secrets never appear in `repr`; `redis_url` and `schema_registry_url` may carry a password, so they do not appear either.
    Raises ArgumentError for a value of the wrong type, naming the variable.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    redis_url: str = Field(default="", repr=False)

    kafka_bootstrap_servers: str = ""
    kafka_security_protocol: str = ""
    kafka_sasl_mechanism: str = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = _NO_SECRET
    kafka_ssl_ca_location: str = ""
    kafka_session_timeout_ms: int | None = Field(default=None, gt=0)

    schema_registry_url: str = Field(default="", repr=False)
    schema_registry_user: str = ""
    schema_registry_password: SecretStr = _NO_SECRET
    schema_registry_ssl_ca_location: str = ""

    snowflake_account: str = ""
    snowflake_user: str = ""
    # Only the emulator needs a password; a Snowflake account is reached with a key pair.
    snowflake_password: SecretStr = _NO_SECRET
    snowflake_private_key_file: str = ""
    snowflake_private_key_passphrase: SecretStr = _NO_SECRET
    snowflake_role: str = ""
    snowflake_warehouse: str = ""
    snowflake_database: str = ""
    snowflake_schema: str = ""
    snowflake_host: str = ""
    snowflake_port: int | None = Field(default=None, gt=0, lt=2**16)
    snowflake_protocol: str = ""

    tally_offline_uri: str = ""
    tally_home: Path = Path(".tally")
    tally_kafka_lib: Path | None = None
    tally_require_apache_kafka: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Settings]) -> Settings:
        try:
            return handler(values)
        except ValidationError as error:
            wrong = "; ".join(
                f"{str(one['loc'][0]).upper()}: {one['msg']}" for one in error.errors(include_input=False)
            )
            raise ArgumentError(
                f"The environment cannot be used ({wrong}); correct the variable, or unset it."
            ) from None

    @classmethod
    def for_repo(cls, repo: Path) -> Settings:
        """Settings for a feature repository: TALLY_HOME, where it is not set, is `.tally` beside the repository's folder.

        Feast's commands change into that folder, so a path relative to the current one would name another place there.
        """
        settings = cls()
        if "tally_home" in settings.model_fields_set:
            return settings
        return cls(tally_home=repo.resolve().parent / settings.tally_home)

    @property
    def home(self) -> Path:
        """TALLY_HOME as an absolute path: where embedded services keep data, logs and `services.json`."""
        return self.tally_home.expanduser().resolve()

    @property
    def kafka_lib(self) -> Path:
        """Where the jars of the embedded Apache Kafka are, or will be put: TALLY_KAFKA_LIB or `<home>/kafka/lib`."""
        return (self.tally_kafka_lib or self.home / "kafka" / "lib").expanduser().resolve()

    def offline_uri(self) -> str:
        """TALLY_OFFLINE_URI, or `<TALLY_HOME>/offline` as an absolute path."""
        return self.tally_offline_uri or str(self.home / "offline")

    def kafka_config(self) -> dict[str, str]:
        """Properties of librdkafka that reach the cluster; add `group.id` and the like yourself."""
        properties = {
            "bootstrap.servers": self.kafka_bootstrap_servers,
            "security.protocol": self.kafka_security_protocol,
            "sasl.mechanism": self.kafka_sasl_mechanism,
            "sasl.username": self.kafka_sasl_username,
            "sasl.password": self.kafka_sasl_password.get_secret_value(),
            "ssl.ca.location": self.kafka_ssl_ca_location,
        }
        return {name: value for name, value in properties.items() if value}

    def kafka_worker_config(self) -> dict[str, str]:
        """`kafka_config` for a worker of a consumer group; KAFKA_SESSION_TIMEOUT_MS says when a silent one counts as dead."""
        session = self.kafka_session_timeout_ms
        return self.kafka_config() | ({"session.timeout.ms": str(session)} if session else {})

    def schema_registry_config(self) -> dict[str, str] | None:
        """Properties of Confluent's schema registry client; None when there is no registry."""
        if not self.schema_registry_url:
            return None
        properties = {"url": self.schema_registry_url, "ssl.ca.location": self.schema_registry_ssl_ca_location}
        if self.schema_registry_user:
            password = self.schema_registry_password.get_secret_value()
            properties["basic.auth.user.info"] = f"{self.schema_registry_user}:{password}"
        return {name: value for name, value in properties.items() if value}

    def snowflake_connect_args(self) -> dict[str, Any]:
        """Keyword arguments for `snowflake.connector.connect`. The session's time zone is UTC."""
        arguments: dict[str, Any] = {
            "account": self.snowflake_account,
            "user": self.snowflake_user,
            "password": self.snowflake_password.get_secret_value(),
            "private_key_file": self.snowflake_private_key_file,
            "private_key_file_pwd": self.snowflake_private_key_passphrase.get_secret_value(),
            "role": self.snowflake_role,
            "warehouse": self.snowflake_warehouse,
            "database": self.snowflake_database,
            "schema": self.snowflake_schema,
            "host": self.snowflake_host,
            "port": self.snowflake_port,
            "protocol": self.snowflake_protocol,
        }
        arguments = {name: value for name, value in arguments.items() if value}
        arguments["session_parameters"] = {"TIMEZONE": "UTC"}
        if self.snowflake_protocol == "http":
            # Plain HTTP has no certificate to check; the check itself would call out to the internet.
            arguments["disable_ocsp_checks"] = True
        return arguments
