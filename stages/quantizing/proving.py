"""A finished INT8 file is written, proven, and its figures told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from pipeline.errors import StageError
from pipeline.hashing import hash_bytes
from pipeline.stage import Progress
from stages.onnx_files.float_layers import float_layers
from stages.onnx_files.lint import tensorrt_ready
from stages.onnx_files.parity import compare
from stages.onnx_files.quantized_proof import quantization_fault, row_by_row
from stages.onnx_files.quantizing import Recipe, count_nodes
from stages.quantizing.bench import Bench, content, top1
from stages.quantizing.making import Judged, Made, likeness

AGREEMENT_LEAST = 80.0
"""Per cent of equal predictions under which the stage says so loudly."""


def figures_of(
    made: Made, judged: Judged, path: Path, bench: Bench
) -> tuple[dict[str, Any], StageError | None]:
    """Writes the file to `path`; returns what is to be known of it, JSON-ready, and what disproves it.

    Agreement and errors are against the float file on the validation images; `holdout` tells them for the
    training images that things were chosen on.
    """
    written = content(made.model)
    path.write_bytes(written)
    onnx.checker.check_model(path, full_check=True)
    parity = compare(bench.float_validation, judged.logits, batch=len(judged.logits)).as_json()
    figures = {
        "file": made.recipe.file,
        "size_bytes": len(written),
        "sha256": hash_bytes(written),
        **count_nodes(made.model),
        "float_layers": float_layers(made.model, made.kept_float),
        "agreement": parity["top1_agreement"],
        "top1": top1(judged.logits, bench.labels),
        "against_float": judged.against_float,
        "budget": judged.told(),
        "logit_max_abs": parity["max_abs"],
        "logit_rms_relative_to_std": likeness(judged.logits, bench.float_validation)[1],
        "holdout": {"agreement": made.agreement, "logit_rms_relative_to_std": made.rms},
        "executed": "optimised" if made.optimise else "node by node",
        "lint": tensorrt_ready(path) if made.recipe.name == "signed" else None,
        "row_by_row": row_by_row(
            path, bench.data.validation.images, judged.logits, bench.card, optimise=made.optimise
        ),
    }
    fault = quantization_fault(
        made.recipe.file, judged.logits, bench.float_validation, figures, agreement=bench.settings.agreement
    )
    figures["passed"] = fault is None
    return figures, fault


def tell(recipe: Recipe, figures: Mapping[str, Any], progress: Progress) -> None:
    """Says aloud what of a file's figures should make one look twice."""
    if figures["agreement"] < AGREEMENT_LEAST:
        progress.note(
            f"WARNING: {recipe.file} predicts as the float file for only {figures['agreement']:.1f} % of "
            f"the validation images (expected at least {AGREEMENT_LEAST:g} %). Try quantize.method: "
            "percentile or entropy, more quantize.images, or leave sensitive nodes in float with "
            "quantize.exclude; a float target may serve better."
        )
    for finding in figures["lint"] or ():
        progress.note(f"{recipe.file} is not fit for TensorRT: {finding}")
