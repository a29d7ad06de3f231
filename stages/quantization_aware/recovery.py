"""Recovers accuracy that an INT8 file lost: a short fine-tune under its rounding, then the same file again.

The modules that train are imported only when a file is fine-tuned.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.errors import StageError
from pipeline.stage import Context
from stages.onnx_files.quantized_proof import paired_accuracy
from stages.onnx_files.quantizing import prepare
from stages.onnx_files.ranges import Ranges, find_ranges
from stages.quantizing.quantized_file import (
    QuantizedFile,
    ValidationResult,
    compare_logits,
    quantize_graph,
    validate,
)
from stages.quantizing.reference import FloatReference, model_bytes, top1


def recover_accuracy(
    file: QuantizedFile, validation: ValidationResult, reference: FloatReference, context: Context
) -> tuple[QuantizedFile, ValidationResult, dict[str, Any] | None]:
    """Fine-tune the student under the rounding of its INT8 file, if `quantize.distill.when` requires it.

    The fine-tuned file is used if it is right on more validation images and still predicts like the float
    file for `quantize.agreement` of them, without which no file passes. The float network that it was
    quantized from is then written beside it as `student.tuned.RECIPE.onnx`.

    Args:
        file: The INT8 file.
        validation: Its result on the validation images.
        reference: Images and float logits.
        context: The stage's context, with the artefacts `train` and `distill`.

    Returns:
        The file to continue with, its result on the validation images, and the report of the fine-tune for
        `calibration.json` (None without a fine-tune).

    Raises:
        StageError: The fine-tune diverges, or the fine-tuned student exports to another graph.
    """
    own = context.settings.quantize.distill
    if own.when == "never" or (own.when == "missed" and not validation.exceeds_budget):
        return file, validation, None
    folder = context.work / "quantization-aware" / file.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    result = _fine_tune(file, folder, reference, context)
    report = {"when": own.when, "learn_ranges": own.learn_ranges, **result["facts"]}
    if "ranges" not in result:
        reference.progress.note(
            f"{file.recipe.file}: no fine-tune, because no layer of the student has any of its weights"
        )
        return file, validation, {**report, "kept": False}
    source = _tuned_source(folder / "tuned.onnx", file)
    ranges = with_learned_ranges(_calibrate(source, file, reference), result["ranges"])
    tuned_file = quantize_graph(source, ranges, file.recipe, file.float_reasons, reference)
    tuned_validation = validate(tuned_file, reference)
    report |= _comparison(validation, tuned_validation, reference)
    _note_result(file, report, reference)
    if not report["kept"]:
        return file, validation, report
    tuned_path = context.output / f"student.tuned.{file.recipe.name}.onnx"
    tuned_path.write_bytes((folder / "tuned.onnx").read_bytes())
    return tuned_file, tuned_validation, report


def _fine_tune(
    file: QuantizedFile, folder: Path, reference: FloatReference, context: Context
) -> dict[str, Any]:
    """Return the result of `fine_tune`; write `tuned.onnx` to the folder."""
    from stages.quantization_aware.fine_tune import FineTuneJob, fine_tune

    (folder / "before.onnx").write_bytes(model_bytes(file.model))
    (folder / "graph.onnx").write_bytes(model_bytes(file.source))
    job = FineTuneJob(
        name=file.recipe.name,
        int8=folder / "before.onnx",
        graph=folder / "graph.onnx",
        tuned=folder / "tuned.onnx",
        checkpoints=folder / "checkpoints",
        card=reference.card,
    )
    return fine_tune(context, job)


def _tuned_source(path: Path, file: QuantizedFile) -> onnx.ModelProto:
    """Return the fine-tuned float graph, prepared; node for node that of the first file."""
    source = prepare(onnx.load(path))
    nodes = [
        [(node.name, node.op_type, *node.output) for node in model.graph.node]
        for model in (file.source, source)
    ]
    if nodes[0] != nodes[1]:
        pair = next((pair for pair in zip(*nodes, strict=False) if pair[0] != pair[1]), None)
        raise StageError(
            "The fine-tuned student exports to another graph than the student.",
            where=f"stage quantize, {file.recipe.file}",
            why=f"the node {pair[1][0]} is in the place of {pair[0][0]}"
            if pair is not None
            else f"{len(nodes[1])} nodes instead of {len(nodes[0])}",
            hint="--set quantize.distill.when=never",
        )
    return source


def _calibrate(source: onnx.ModelProto, file: QuantizedFile, reference: FloatReference) -> Ranges:
    """Return ranges of the fine-tuned graph by the first file's method: for what was not simulated."""
    method = file.ranges.method
    feeds = functools.partial(reference.calibration_feeds, method.name)
    return find_ranges(source, file.ranges.tensors, feeds, [method])[method]


def with_learned_ranges(ranges: Ranges, learned: Mapping[str, tuple[float, float]]) -> Ranges:
    """Return the ranges, with learned ones in the place of calibrated ones.

    Args:
        ranges: The calibrated ranges.
        learned: (low, high) by activation.
    """
    ends = [
        learned.get(name, (low, high))
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    ]
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return replace(ranges, low=low, high=high)


def _comparison(
    before: ValidationResult, after: ValidationResult, reference: FloatReference
) -> dict[str, Any]:
    """Return the top-1 of the float file and of both INT8 files, and the share of the loss recovered."""
    float_top1 = top1(reference.float_validation, reference.labels)
    before_top1, after_top1 = top1(before.logits, reference.labels), top1(after.logits, reference.labels)
    lost = float_top1 - before_top1
    agreement = compare_logits(after.logits, reference.float_validation)[0]
    return {
        "float_top1": float_top1,
        "before_top1": before_top1,
        "after_top1": after_top1,
        "after_agreement": agreement,
        "gain": paired_accuracy(after.logits, before.logits, reference.labels),
        "recovered_share": round((after_top1 - before_top1) / lost, 4) if lost > 0 else None,
        "kept": after_top1 > before_top1 and agreement >= reference.settings.agreement,
    }


def _note_result(file: QuantizedFile, report: Mapping[str, Any], reference: FloatReference) -> None:
    figures = (
        f"top-1 on {len(reference.labels)} validation images: float {report['float_top1']:.2f} %, "
        f"INT8 {report['before_top1']:.2f} %, fine-tuned {report['after_top1']:.2f} %"
    )
    if report["kept"]:
        decision = "the fine-tuned file is used"
    elif report["after_top1"] <= report["before_top1"]:
        decision = "it is no better, so the fine-tuned file is not used"
    else:
        decision = (
            f"it predicts like the float file for only {report['after_agreement']:.1f} % of them, less than "
            f"quantize.agreement ({reference.settings.agreement:g} %), so the fine-tuned file is not used"
        )
    reference.progress.note(f"{file.recipe.file}, quantization-aware distillation: {figures}; {decision}")
