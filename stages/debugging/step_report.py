"""Report one step: figures for the table and the document, and the minimal model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stages.debugging.minimal_model import Case, differing_weights, write_minimal


def conclude(case: Case, output: Path) -> dict[str, Any]:
    """Report one step, and write the minimal model into `output` if there is a divergence.

    The folder is replaced as a whole: a failure leaves no partial model.

    Returns:
        The JSON-ready report.
    """
    finding, first = case.finding, case.finding.first
    if first is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(f".{output.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_minimal(case, unfinished)
        shutil.rmtree(output, ignore_errors=True)
        unfinished.rename(output)
    return {
        "step": case.title,
        "status": "healthy" if first is None else "diverges",
        "healthy": first is None,
        "why": None,
        "tolerance": case.tolerance,
        "compared": len(finding.layers),
        "without_counterpart": finding.without,
        "healed": finding.healed,
        "outputs": [layer.as_json() for layer in finding.layers if layer.value in case.graph.outputs],
        "first": None if first is None else first.as_json(),
        "layers": [layer.as_json() for layer in finding.around()],
        "weights": [{"name": name, "max_abs": value} for name, value in differing_weights(case)],
        "output": None if first is None else str(output),
    }


def skipped(title: str, why: str) -> dict[str, Any]:
    """Report a step that could not be compared; it counts as healthy, because the files are not the cause."""
    return {"step": title, "status": "skipped", "healthy": True, "why": why}
