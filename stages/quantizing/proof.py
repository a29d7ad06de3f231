"""The proof of a finished INT8 file: it is written, checked, and its figures collected."""

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
from stages.quantizing.quantized_file import QuantizedFile, ValidationResult, compare_logits
from stages.quantizing.reference import FloatReference, model_bytes, top1

MIN_AGREEMENT = 80.0
"""Per cent of equal predictions; for fewer the stage prints a warning."""


def write_and_check(
    file: QuantizedFile, validation: ValidationResult, path: Path, reference: FloatReference
) -> tuple[dict[str, Any], StageError | None]:
    """Write an INT8 file and check it against the float file.

    Args:
        file: The file.
        validation: Its result on the validation images.
        path: Where it is written.
        reference: Images and float logits.

    Returns:
        The file's figures, JSON-ready, and the error if it does not pass. Agreement and errors are those
        on the validation images; `holdout` has them for the held-out training images.
    """
    content = model_bytes(file.model)
    path.write_bytes(content)
    onnx.checker.check_model(path, full_check=True)
    logits = validation.logits
    parity = compare(reference.float_validation, logits, batch=len(logits)).as_json()
    figures = {
        "file": file.recipe.file,
        "size_bytes": len(content),
        "sha256": hash_bytes(content),
        **count_nodes(file.model),
        "float_layers": float_layers(file.model, file.float_reasons),
        "agreement": parity["top1_agreement"],
        "top1": top1(logits, reference.labels),
        "against_float": validation.against_float,
        "budget": validation.as_json(),
        "logit_max_abs": parity["max_abs"],
        "logit_rms_relative_to_std": compare_logits(logits, reference.float_validation)[1],
        "holdout": {"agreement": file.agreement, "logit_rms_relative_to_std": file.relative_rms},
        "executed": "optimised" if file.optimise else "node by node",
        "lint": tensorrt_ready(path) if file.recipe.name == "signed" else None,
        "row_by_row": row_by_row(
            path, reference.data.validation.images, logits, reference.card, optimise=file.optimise
        ),
    }
    fault = quantization_fault(
        file.recipe.file,
        logits,
        reference.float_validation,
        figures,
        agreement=reference.settings.agreement,
    )
    figures["passed"] = fault is None
    return figures, fault


def note_warnings(recipe: Recipe, figures: Mapping[str, Any], progress: Progress) -> None:
    """Report low agreement and findings of the TensorRT lint.

    Args:
        recipe: The file's recipe.
        figures: The figures from `write_and_check`.
        progress: Where the warnings are reported.
    """
    if figures["agreement"] < MIN_AGREEMENT:
        progress.note(
            f"WARNING: {recipe.file} predicts like the float file for only {figures['agreement']:.1f} % of "
            f"the validation images (expected at least {MIN_AGREEMENT:g} %). Try quantize.method: "
            "percentile or entropy, more quantize.images, or leave sensitive nodes in float with "
            "quantize.exclude; or use a float target."
        )
    for finding in figures["lint"] or ():
        progress.note(f"{recipe.file} is not ready for TensorRT: {finding}")
