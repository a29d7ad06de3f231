"""Every example works as it is: the scripts as processes, the notebook's cells in order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, environment

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"
ARGUMENTS: dict[str, tuple[str, ...]] = {}
"""By script, the arguments for small settings; none for a script that is small by default."""


def code_cells() -> list[str]:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_a_script_runs(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / script), *ARGUMENTS.get(script, ())]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout


def test_the_cells_of_the_notebook_run_in_order(tmp_path: Path) -> None:
    program = tmp_path / "cells.py"
    program.write_text("\n\n".join(code_cells()), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "onnxruntime-int8" in finished.stdout


def test_the_notebook_was_executed_and_shows_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    tables = [output for cell in code for output in cell["outputs"] if "text/html" in output.get("data", {})]
    assert len(tables) >= 3
    for folder in ("home", "root", "tmp", "work", "Users"):
        assert f"/{folder}/" not in text
    assert str(Path.home()) not in text
