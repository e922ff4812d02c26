"""The notebooks run as they are, and are committed without output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.waiting import HANG_S

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONG = {"02_train"}
"""Trains for longer; 03 to 05 train as well, on less."""


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=HANG_S, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_output(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_imports_what_is_public(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = "".join("".join(cell["source"]) + "\n" for cell in content["cells"] if cell["cell_type"] == "code")
    imported = {line.split(" import ")[0] for line in code.splitlines() if re.match(r"(from|import) flairhub", line)}
    assert imported <= {"import flairhub as fh", "from flairhub.demo"}
    assert "import flairhub as fh" in code
    assert code.count("dashboard_address") == code.count('"dashboard_address": "127.0.0.1:')


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]
