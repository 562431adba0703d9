"""The files for container engines: they cannot run here, so what they name must at least exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from infra.settings import Settings
from ingestion.health import serving
from ingestion.metrics import Metrics
from ingestion.report import State
from tally_cli.app import app

INFRA = Path(__file__).parents[2] / "infra"
FILES = [INFRA / "compose.yaml", *sorted((INFRA / "kubernetes").glob("*.yaml"))]


def tally_commands(node: Any) -> Iterator[list[str]]:
    """The arguments given to the image, whose entry point is `tally`, wherever they stand in a document."""
    if isinstance(node, dict):
        ours = str(node.get("image", "")).startswith("tally") or ("build" in node and "entrypoint" not in node)
        arguments = node.get("args", node.get("command"))
        if ours and arguments:
            yield arguments
        for child in node.values():
            yield from tally_commands(child)
    elif isinstance(node, list):
        for child in node:
            yield from tally_commands(child)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def unknown_of(arguments: Sequence[str]) -> list[str]:
    """What of `tally ARGUMENTS` the command line does not have: the command, a command of a group, or options."""
    command: Any = get_command(app)
    rest = list(arguments)
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    """Every `tally` command in a manifest is one that the command line has, with its options."""
    commands = list(tally_commands(yaml.safe_load(path.read_text())))

    assert commands
    assert [unknown_of(arguments) for arguments in commands] == [[]] * len(commands)


def test_commands_of_alerts_exist() -> None:
    """An alert sends whoever is on call to commands that are there."""
    text = (INFRA / "prometheus" / "alerts.yaml").read_text()
    named = re.findall(r"tally (dlq \w+|[a-z]+)((?: --[a-z-]+)*)", text)

    assert named
    assert [unknown_of([*name.split(), *options.split()]) for name, options in named] == [[]] * len(named)


def test_a_renamed_option_would_be_noticed() -> None:
    """What the tests above would say of a command or an option that is gone."""
    assert unknown_of(["stream", "--metrics-port", "9400"]) == []
    assert unknown_of(["stream", "--metric-port", "9400"]) == ["--metric-port"]
    assert unknown_of(["dlq", "show"]) == ["show"]
    assert unknown_of(["feed"]) == ["feed"]


def test_probes_ask_what_a_worker_answers() -> None:
    """Paths of the stream's probes are served, at the port that its metrics get and Prometheus reads."""
    document = yaml.safe_load((INFRA / "kubernetes" / "stream.yaml").read_text())
    template = document["spec"]["template"]
    container = template["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [node["httpGet"] for node in nodes(document) if "httpGet" in node]
    port = int(container["args"][container["args"].index("--metrics-port") + 1])
    assert {ports[probe["port"]] for probe in probes} == {port}
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)

    state = State()
    with serving(state, Metrics(state), 0) as opened:
        for path in [probe["path"] for probe in probes] + ["/metrics"]:
            connection = HTTPConnection("127.0.0.1", opened)
            connection.request("GET", path)
            assert connection.getresponse().status in (200, 503)
            connection.close()


def test_volumes_belong_to_the_image_s_user() -> None:
    """Each folder where a volume of our jobs is mounted is made in the image and given to the user that it runs as."""
    document = yaml.safe_load((INFRA / "compose.yaml").read_text())
    image = (INFRA / "Dockerfile").read_text()
    made = re.search(r"mkdir -p (.+?) &&", image)
    owned = re.search(r"chown -R tally (.+)", image)
    assert made is not None
    assert owned is not None
    for volume in document["x-tally"]["volumes"]:
        path = volume.partition(":")[2].removeprefix("/srv/tally/")
        assert path in made[1].split()
        assert any(path.startswith(folder) for folder in owned[1].split())


def test_variables_exist() -> None:
    """Every variable that a manifest sets for our jobs is one that the settings, or the command, read."""
    document = yaml.safe_load((INFRA / "compose.yaml").read_text())
    names = set(document["x-tally"]["environment"])
    for path in FILES:
        names |= {
            one["name"]
            for node in nodes(yaml.safe_load(path.read_text()))
            if isinstance(node.get("env"), list)
            for one in node["env"]
        }

    assert "TALLY_LOG_FORMAT" in names
    assert {name.lower() for name in names} - {"tally_log_format"} <= set(Settings.model_fields)
