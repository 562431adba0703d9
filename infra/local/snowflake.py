"""Embedded Snowflake: the emulator fakesnow as a server that the real Snowflake connector talks to."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from importlib.metadata import version

from pydantic import SecretStr

from infra.local.errors import LocalServiceError
from infra.local.process import python_module, wait_until_ready
from infra.local.service import Service, Spawn
from infra.settings import Settings

PART = "snowflake"
VARIABLE = "SNOWFLAKE_ACCOUNT"
DATABASE = "TALLY"
SCHEMA = "PUBLIC"

_FIRST_UNUSABLE_CONNECTOR = 5  # its core is another programme, which fakesnow 0.12 cannot import


def start(settings: Settings, spawn: Spawn) -> Service:
    """Start the emulator. Its data, below `<home>/snowflake`, survives a restart. Raises LocalServiceError."""
    _check_connector()
    directory = settings.home / "snowflake"
    directory.mkdir(parents=True, exist_ok=True)
    port_file = directory / "port"
    port_file.unlink(missing_ok=True)
    log_file = settings.home / "logs" / "snowflake.log"
    implementation = f"Snowflake emulator fakesnow {version('fakesnow')}"
    database = settings.snowflake_database or DATABASE
    schema = settings.snowflake_schema or SCHEMA
    command = python_module("infra.local.snowflake_server", str(directory), database, schema)
    process = spawn(command, log_file)

    def service() -> Service:
        address = f"http://127.0.0.1:{port_file.read_text()}"
        return Service(PART, implementation, address, process.pid, command, str(log_file))

    wait_until_ready(implementation, process, lambda: port_file.exists() and answers(service()), log_file)
    return service()


def answers(service: Service) -> bool:
    """Whether this very process, and no stranger on its port, answers requests."""
    # An opener without proxies: a proxy of the environment is not for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{service.address}/tally/pid", timeout=5) as response:
            return bool(json.load(response) == service.pid)
    except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
        return False


def addresses(settings: Settings, service: Service) -> dict[str, object]:
    """The settings that lead to the service. Database and schema stay as the environment set them, if it did."""
    return {
        "snowflake_account": "fakesnow",
        "snowflake_user": "tally",
        "snowflake_password": SecretStr("embedded"),
        "snowflake_private_key_file": "",
        "snowflake_database": settings.snowflake_database or DATABASE,
        "snowflake_schema": settings.snowflake_schema or SCHEMA,
        "snowflake_host": "127.0.0.1",
        "snowflake_port": int(service.address.rpartition(":")[2]),
        "snowflake_protocol": "http",
    }


def data_paths(settings: Settings) -> list[str]:
    """What `down(wipe=True)` deletes: the tables, and where they are embedded ones their copy in the default offline store.

    The copy says up to which offsets messages are known. Those of a topic that begins anew would be taken for old ones.
    """
    paths = [str(settings.home / "snowflake")]
    if not settings.snowflake_account and not settings.tally_offline_uri:
        paths.append(settings.offline_uri())
    return paths


def _check_connector() -> None:
    connector = version("snowflake-connector-python")
    if int(connector.partition(".")[0]) >= _FIRST_UNUSABLE_CONNECTOR:
        raise LocalServiceError(
            f"The embedded Snowflake emulator cannot work with snowflake-connector-python {connector}: "
            f"install 'snowflake-connector-python<{_FIRST_UNUSABLE_CONNECTOR}', or set SNOWFLAKE_ACCOUNT."
        )
