"""`feast serve` over a socket: with Feast's own Redis store, and with ours."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from redis import Redis

from benchmarks.definitions import KEY
from benchmarks.feast_command import apply, serve
from benchmarks.lookup_feast import feast_url
from benchmarks.lookup_world import asked, store_latest
from benchmarks.measure import Call, DifferentAnswersError, Seconds, in_turns
from infra.repository import load_plan
from ingestion.reading import Rows
from tally.errors import UnavailableError

ROWS: Final = (1, 100)
_REPO: Final = Path(__file__).with_name("serving_repo")
_PATIENCE: Final = 120.0
_PAUSE: Final = 0.05
_CONFIGURATION: Final = """
project: bench
provider: local
registry: {registry}
online_store:
  type: redis
  connection_string: "{address},db=1"
offline_store:
  type: file
entity_key_serialization_version: 3
"""


def beside_feast_serve(
    folder: Path, redis: Redis, redis_url: str, features: Sequence[str], stored: Mapping[str, Rows], samples: int
) -> dict[int, dict[str, Seconds]]:
    """For each of `ROWS`, how long requests of `features` took, from the body sent to the JSON parsed, by "ours", "Feast".

    `folder` is where `feast_store` was made, whose registry and data are served. One client keeps one connection open.
    Raises DifferentAnswersError.
    """
    ours, theirs = folder / "ours", folder / "theirs"
    shutil.copytree(_REPO, ours)
    apply(ours, redis_url)
    plan = load_plan(ours)
    for view in plan.views:
        store_latest(redis, plan, view, stored[view.name])
    theirs.mkdir()
    address = feast_url(redis_url).removeprefix("redis://").split("/")[0]
    (theirs / "feature_store.yaml").write_text(_CONFIGURATION.format(registry=folder / "registry.db", address=address))
    with ExitStack() as stack:
        ports = {"ours": stack.enter_context(_serving(ours, redis_url))}
        ports["Feast"] = stack.enter_context(_serving(theirs, redis_url))
        connections = {name: stack.enter_context(_connected(port)) for name, port in ports.items()}
        return {count: _timed(connections, features, count, samples) for count in ROWS}


def _timed(
    connections: Mapping[str, HTTPConnection], features: Sequence[str], count: int, samples: int
) -> dict[str, Seconds]:
    entities = {KEY.name: [row[KEY.name] for row in asked(count)]}
    body = json.dumps({"features": features, "entities": entities}).encode()
    answers = [_values(_post(connection, body)) for connection in connections.values()]
    if answers[0] != answers[1]:
        raise DifferentAnswersError(f"feast serve answers {count} rows differently with our store; nothing was timed.")
    cases: dict[str, Call] = {
        name: lambda connection=connection: _post(connection, body)  # type: ignore[misc]
        for name, connection in connections.items()
    }
    return in_turns(cases, samples)


def _values(answer: Any) -> dict[str, list[Any]]:
    names = answer["metadata"]["feature_names"]
    return {name: result["values"] for name, result in zip(names, answer["results"], strict=True)}


def _post(connection: HTTPConnection, body: bytes) -> Any:
    connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise UnavailableError(f"feast serve answered {response.status}: {text.decode()[:500]}")
    return json.loads(text)


@contextmanager
def _serving(repo: Path, redis_url: str) -> Iterator[int]:
    """The port at which the server of `repo` will answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    server = serve(repo, redis_url, port)
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _connected(port: int) -> Iterator[HTTPConnection]:
    """A connection to the server, once it is there."""
    until = time.monotonic() + _PATIENCE
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.connect()
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)
    try:
        yield connection
    finally:
        connection.close()
