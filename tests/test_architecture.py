"""Rooms import what docs/architecture.md lets them import, and nothing else. Read from the source: nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "feature_repo", "tally", "connections", "ingestion", "training", "serving_client", "feast_plugins", "infra", "tally_cli",
    "demo", "benchmarks",
)  # fmt: skip

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "tally": (),
    "feature_repo": ("tally.functions",),
    "connections": ("tally.errors",),
    "ingestion": ("tally", "connections", "infra.settings"),
    "training": (
        "tally",
        "ingestion.delta",
        "ingestion.offline",
        "ingestion.reading",
        "ingestion.arrow",
        "ingestion.scan",
        "infra.settings",
        "infra.repository",
    ),
    "serving_client": ("tally", "connections"),
    "feast_plugins": ("tally", "connections", "ingestion", "training", "serving_client", "infra"),
    "infra": ("tally",),
    "tally_cli": ("tally", "connections", "ingestion", "training", "serving_client", "infra", "demo"),
    "demo": ("tally", "connections", "ingestion", "training", "serving_client", "infra", "tally_cli", "feature_repo"),
    "benchmarks": ("tally", "connections", "ingestion", "training", "serving_client", "infra", "demo", "feature_repo"),
}
"""Modules of other rooms, with all that is below them."""

PURE_STDLIB = {
    "__future__", "abc", "ast", "bisect", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "importlib", "inspect", "itertools", "json", "math", "operator", "struct", "threading", "types", "typing", "zlib",
}  # fmt: skip
"""What tally may use of Python's library: no files, clocks, network, processes, chance or environment."""


@dataclass(frozen=True)
class Import:
    """One imported module (or name in one), where, and whether a caller pays for it when it imports the file."""

    file: Path
    line: int
    module: str
    at_once: bool

    @property
    def package(self) -> str:
        """The first part of its name."""
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    """The imports of a file, those inside functions and behind TYPE_CHECKING too."""
    tree = ast.parse(path.read_text())
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            inside.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import; name the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(path.relative_to(ROOT), node.lineno, name, node not in inside)


def room_imports(room: str) -> list[Import]:
    """All imports of a room."""
    return [found for path in sorted((ROOT / room).rglob("*.py")) for found in imports_of(path)]


def within(module: str, allowed: str) -> bool:
    """Whether a module is `allowed`, or below it."""
    return f"{module}.".startswith(f"{allowed}.")


def listed(wrong: list[Import]) -> str:
    """Imports that break a rule, one a line."""
    return "\n".join(map(str, wrong))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_they_may(room: str) -> None:
    """Arrows point one way."""
    wrong = [
        found
        for found in room_imports(room)
        if found.package in ROOMS
        and found.package != room
        and not any(within(found.module, allowed) for allowed in MAY_IMPORT[room])
    ]
    assert not wrong, listed(wrong)


def test_tally_imports_only_numpy_and_pure_modules() -> None:
    """The rules have no I/O, no clock and no network, and need nothing but NumPy."""
    wrong = [i for i in room_imports("tally") if i.package not in {"tally", "numpy", *PURE_STDLIB}]
    assert not wrong, listed(wrong)


def test_the_serving_client_imports_only_redis_and_numpy() -> None:
    """Workers start fast: what frames, the log of served rows and metrics need is imported by whoever asks for them."""
    allowed = {"serving_client", "tally", "connections", "numpy", "redis", *sys.stdlib_module_names}
    frames = Path("serving_client/frames.py")
    wrong = [i for i in room_imports("serving_client") if i.package not in allowed]
    optional = ("pandas", "pyarrow", "confluent_kafka", "prometheus_client")
    wrong = [i for i in wrong if i.package not in optional or (i.file != frames and i.at_once)]
    wrong += [i for i in room_imports("serving_client") if within(i.module, "serving_client.frames") and i.at_once]
    assert not wrong, listed(wrong)


def test_connections_import_only_redis() -> None:
    """Every inference worker pays for what the way to Redis imports."""
    wrong = [
        i
        for i in room_imports("connections")
        if i.package not in {"connections", "tally", "redis", *sys.stdlib_module_names}
    ]
    assert not wrong, listed(wrong)


def test_only_the_plugins_and_definitions_know_feast() -> None:
    """Everything after `feast apply` reads the plan."""
    wrong = [
        found
        for room in ROOMS
        if room not in ("feast_plugins", "feature_repo", "benchmarks")
        for found in room_imports(room)
        if found.package == "feast"
    ]
    assert not wrong, listed(wrong)


def test_nothing_imports_the_plugins() -> None:
    """`feature_store.yaml` names them; `feature_repo` is imported by name from the plan, never by the engine's code."""
    engine = [room for room in ROOMS if room not in ("feast_plugins", "feature_repo", "demo", "benchmarks")]
    wrong = [i for room in ROOMS if room != "feast_plugins" for i in room_imports(room) if i.package == "feast_plugins"]
    wrong += [i for room in [*engine, "feast_plugins"] for i in room_imports(room) if i.package == "feature_repo"]
    assert not wrong, listed(wrong)


def test_nothing_pickles() -> None:
    """Stored and sent bytes are ours, or JSON, or Arrow's."""
    wrong = [
        i
        for room in ROOMS
        for i in room_imports(room)
        if i.package in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
    ]
    assert not wrong, listed(wrong)


def test_the_page_on_architecture_names_every_room() -> None:
    """Every folder with code is a room of this test, and every room but the benchmarks has its row in the page's table."""
    tracked = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")}
    assert tracked - {"tests", "notebooks", "docs"} <= set(ROOMS)
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room in ROOMS:
        assert f"| `{room}/" in page or room == "benchmarks", f"docs/architecture.md has no row for {room}/"
