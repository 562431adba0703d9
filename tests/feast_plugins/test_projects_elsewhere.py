"""A feature repository outside of ours: its functions are those beside its definitions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import feature_repo
from infra.settings import Settings

OURS = Path(feature_repo.__path__[0])
BINARIES = Path(sys.executable).parent
FUNCTIONS = "def doubled(amount):\n    return {'twice': 2.0 * amount}\n"
DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, Field, OnDemandFeatureView, SnowflakeSource
from feast.types import Float64, String
from feast.value_type import ValueType

from {folder} import transformations
from tally.functions import as_udf

card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)
table = SnowflakeSource(name="cards", table="CARDS", timestamp_field="at")
limits = FeatureView(name="limits", entities=[card], source=table, schema=[Field(name="amount", dtype=Float64)])
twice = OnDemandFeatureView(
    name="twice", sources=[limits], schema=[Field(name="twice", dtype=Float64)], **as_udf({function})
)
fraud = FeatureService(name="fraud", features=[limits, twice])
"""
LOADS = """
import sys
from pathlib import Path
from infra.repository import load_plan
from tally.functions import load
import tally_cli
repo = Path(sys.argv[1])
plan = load_plan(repo)
functions = [load(function.function) for function in plan.functions]
import training
print(functions[0].__code__.co_filename, training.__name__)
"""


def project(folder: Path, name: str, function: str = "transformations.doubled") -> Path:
    """A feature repository called `name`, in a project that has a folder `training` of its own, too."""
    repo = folder / name
    repo.mkdir(parents=True)
    text = (OURS / "feature_store.yaml").read_text().replace("project: flights", "project: payments")
    (repo / "feature_store.yaml").write_text(text)
    (repo / "transformations.py").write_text(FUNCTIONS)
    (repo / "definitions.py").write_text(DEFINITIONS.format(folder=name, function=function))
    (folder / "training").mkdir()
    (folder / "training" / "__init__.py").write_text("raise SystemExit('not this one')\n")
    return repo


def run(folder: Path, redis_url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with nothing on PYTHONPATH."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"REDIS_URL": redis_url}
    return subprocess.run(
        [str(a) for a in arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["feature_repo", "card_features"])
def test_a_repository_of_any_name_is_applied_and_loaded(tmp_path: Path, services: Settings, name: str) -> None:
    """Also one that is called like ours, and wherever the command is typed."""
    repo = project(tmp_path / "payments", name)

    applied = run(tmp_path, services.redis_url, BINARIES / "feast", "-c", repo, "apply")
    assert applied.returncode == 0, applied.stderr
    found = run(tmp_path, services.redis_url, BINARIES / "python", "-c", LOADS, repo)

    assert found.stdout.split() == [str(repo / "transformations.py"), "training"], found.stderr


def test_a_function_that_is_refused_while_definitions_are_read(tmp_path: Path, services: Settings) -> None:
    """The error of `as_udf` is a sentence, as those of the compiler are."""
    repo = project(tmp_path, "card_features", "lambda amount: {'twice': amount}")

    ended = run(tmp_path, services.redis_url, BINARIES / "feast", "-c", repo, "apply")

    assert ended.returncode == 1
    assert "must be a plain function at the top level of a module" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("sound", "broken", "told"),
    [
        ("  registry_store_type:", "  # registry_store_type:", "registry has no registry_store_type"),
        ("offline_store:", "ofline_store:", "offline_store has no type"),
    ],
)
def test_a_repository_with_some_stores_of_feast_s(
    tmp_path: Path, services: Settings, sound: str, broken: str, told: str
) -> None:
    """`feast apply` refuses it: it would leave no plan, or answers in a store that nobody reads, and say nothing."""
    repo = project(tmp_path, "card_features")
    config = repo / "feature_store.yaml"
    assert sound in config.read_text()
    config.write_text(config.read_text().replace(sound, broken))

    ended = run(tmp_path, services.redis_url, BINARIES / "feast", "-c", repo, "apply")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{config}: {told}, Tally needs all of its own; write `"), ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("sound", "broken", "told"),
    [
        ("transformations.doubled", "transformations.dubbled", ["definitions.py", "has no attribute 'dubbled'"]),
        ('Field(name="twice"', 'Field(name="thrice"', ["features [thrice FLOAT64] not found", "[twice FLOAT64]"]),
    ],
)
def test_what_feast_or_python_refuses(
    tmp_path: Path, services: Settings, sound: str, broken: str, told: list[str]
) -> None:
    """It is shown with the lines of the repository, and without the fifty of Feast that led there."""
    repo = project(tmp_path, "card_features")
    definitions = repo / "definitions.py"
    definitions.write_text(definitions.read_text().replace(sound, broken))

    ended = run(tmp_path, services.redis_url, BINARIES / "feast", "-c", repo, "apply")

    assert ended.returncode == 1
    assert "site-packages" not in ended.stderr
    assert len(ended.stderr.splitlines()) < 8
    assert [part for part in told if part not in ended.stderr] == []
    assert "TALLY_DEBUG=1" in ended.stderr.splitlines()[-1]
