from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tests.end_to_end.world import World

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "training_set.ipynb"


class ThisPython(KernelManager):
    """A kernel of the running interpreter, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How it is started."""
        argv = [sys.executable, "-W", "ignore", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python", language="python")


def committed() -> Any:
    """The notebook as it is in the repository."""
    read: Any = nbformat.read
    return read(NOTEBOOK, as_version=4)


def executed(**variables: str) -> Any:
    """The notebook after a run with these variables set."""
    notebook = committed()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_manager_class=ThisPython,
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        )
        return client.execute()


def test_the_notebook_runs(world: World) -> None:
    """Every cell runs on this store; rows in are rows out, some values differ as served, and there is a picture."""
    notebook = executed(TALLY_REPO=str(world.repo), TALLY_OFFLINE_URI=world.settings.offline_uri())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]

    assert any(text.startswith("<TrainingSet: ") for text in texts)
    assert any(" of 52 features differ in some flight" in text and not text.startswith("0 ") for text in texts)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_without_a_store_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was ingested the first cell ends with one sentence that names the command to run."""
    first = next(cell.source for cell in committed().cells if cell.cell_type == "code")
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setenv("TALLY_OFFLINE_URI", str(tmp_path))
    with pytest.raises(SystemExit, match="There is no offline store yet: run `make demo` first"):
        exec(first, {})


def test_what_is_committed_names_no_machine() -> None:
    """Its outputs are there to be read without running it; they are small, and hold no path of whoever ran it."""
    text = NOTEBOOK.read_text()
    cells = [cell for cell in committed().cells if cell.cell_type == "code"]

    assert any(cell.outputs for cell in cells)
    assert len(text) < 300_000
    for place in ("/tmp", "/home", "/root", "/Users", str(Path.cwd()), str(Path.home())):
        assert place not in text
