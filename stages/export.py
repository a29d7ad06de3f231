"""The stage `export`: export teacher and student to ONNX and prove that they agree with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline.errors import StageError
from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics, Progress
from stages.data.load import load as load_data
from stages.models.card import load as load_network
from stages.onnx_files.exporting import Exported, export_network
from stages.onnx_files.graph_proof import prove_graph
from stages.onnx_files.parity import measure_parity, parity_fault
from stages.onnx_files.settings import ExportSettings

ROLES = (("student", "distill"), ("teacher", "train"))
"""Each network and the stage whose artefact holds it. The student is first: its errors appear sooner."""


def run(context: Context) -> Metrics:
    """Write `student.onnx`, `teacher.onnx`, their cards, `images.npy` and `parity.json`.

    Both files are proven before anything is written.

    Raises:
        StageError: If a network cannot be exported, has other parameters than its card lists, or computes
            something else as an ONNX file.
    """
    settings: ExportSettings = context.settings.export
    images = _parity_images(context, settings)
    contents: dict[str, bytes] = {}
    cards: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {
        "schema_version": 1,
        "tolerance": settings.tolerance,
        "agreement": settings.agreement,
    }
    for done, (role, stage) in enumerate(ROLES):
        context.progress.update(done, len(ROLES), "networks", exporting=role)
        cards[role] = _card(context.inputs[stage], preprocessing=settings.preprocessing)
        network, _ = load_network(context.inputs[stage])
        contents[role], report[role] = _export_and_prove(
            network, cards[role], role, images, settings, context.progress
        )
    context.progress.update(len(ROLES), len(ROLES), "networks")
    for role, content in contents.items():
        (context.output / f"{role}.onnx").write_bytes(content)
        write_json(context.output / f"{role}.json", cards[role])
    np.save(context.output / "images.npy", images)
    write_json(context.output / "parity.json", report)
    return _metrics(report, contents)


def _export_and_prove(
    network: nn.Module,
    card: Mapping[str, Any],
    role: str,
    images: np.ndarray,
    settings: ExportSettings,
    progress: Progress,
) -> tuple[bytes, dict[str, Any]]:
    """Return the file's bytes, and this network's part of `parity.json`."""
    exported = export_network(network, card, role=role, opset=settings.opset, batch_max=settings.batch_max)
    _require_own_parameters(exported, card, role, progress)
    content = prove_graph(exported.model, card, role=role, opset=settings.opset)
    checks, rows = measure_parity(network, content, images, card, role=role)
    fault = parity_fault(checks, rows, role=role, tolerance=settings.tolerance, agreement=settings.agreement)
    if fault and settings.prove:
        raise fault
    if fault:
        progress.note(f"{fault.what} {fault.why}; written all the same (export.prove: false)")
    return content, {
        "checks": [check.as_json() for check in checks],
        "row_by_row": rows,
        "passed": fault is None,
        "parameters_graph": exported.graph_parameters,
        "parameters_network": exported.network_parameters,
        "opset": settings.opset,
        "ir_version": exported.model.ir_version,
        "size_bytes": len(content),
    }


def _require_own_parameters(
    exported: Exported, card: Mapping[str, Any], role: str, progress: Progress
) -> None:
    """Raise an error if the network has other parameters than its card lists, or the student unused ones.

    This keeps a projector or a head of the teacher out of the student's file. A teacher may have parameters
    that only training reads (an auxiliary head); they stay out of its file.
    """
    if exported.network_parameters != card["parameters"]:
        raise StageError(
            f"The {role} does not have the parameters that its card lists.",
            where=f"stage export, {card['model']}",
            why=f"found {exported.network_parameters:,} parameters, its card lists {card['parameters']:,}",
            hint="delete the artefact and create it again, or check how the network is built",
        )
    if not exported.unread:
        return
    surplus = exported.network_parameters - exported.graph_parameters
    names = ", ".join(exported.unread[:5]) + (", …" if len(exported.unread) > 5 else "")
    if role == "student":
        raise StageError(
            "The student has parameters that its logits do not depend on.",
            where=f"stage export, {card['model']}",
            why=f"{surplus:,} of {exported.network_parameters:,} parameters never reach the output: {names}",
            hint="switch that branch off in student.options, or choose another student.model",
        )
    progress.note(f"The {role}'s file leaves out {surplus:,} parameters that only training reads: {names}.")


def _parity_images(context: Context, settings: ExportSettings) -> np.ndarray:
    """Return real test images, uint8 (n, H, W, C), evenly spread over the split to cover every class."""
    test = load_data(context.settings.data).test
    count = min(settings.parity_images, settings.batch_max, len(test.labels))
    return test.images.batch(np.linspace(0, len(test.labels) - 1, count).astype(np.int64))


def _card(folder: Path, *, preprocessing: bool) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return {**facts, "input": "uint8_nhwc" if preprocessing else "float32_nchw"}


def _metrics(report: Mapping[str, Any], contents: Mapping[str, bytes]) -> Metrics:
    metrics: Metrics = {}
    for role, content in contents.items():
        checks = report[role]["checks"]
        metrics[f"{role}_size_bytes"] = len(content)
        metrics[f"{role}_max_abs"] = max(check["max_abs"] for check in checks)
        metrics[f"{role}_max_relative_to_std"] = max(check["max_relative_to_std"] for check in checks)
        metrics[f"{role}_top1_agreement"] = min(check["top1_agreement"] for check in checks)
    return metrics
