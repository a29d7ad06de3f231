"""The stage quantize: the student's float ONNX file becomes INT8 files, one a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.stage import Context, Metrics, Progress
from stages.data.load import DataSet
from stages.data.load import load as load_data
from stages.onnx_files.calibration import audit, doubts, draw
from stages.onnx_files.lint import tensorrt_ready
from stages.onnx_files.metadata import feed
from stages.onnx_files.parity import compare, require_spread
from stages.onnx_files.quantised_proof import paired_accuracy, quantisation_fault, row_by_row
from stages.onnx_files.quantising import (
    RECIPES,
    Recipe,
    count_nodes,
    float_nodes,
    prepare,
    quantised,
)
from stages.onnx_files.ranges import Ranges, find_ranges, float_activations
from stages.onnx_files.sessions import open_session, run_logits
from stages.runtimes import registry
from stages.runtimes.settings import TargetSettings
from stages.settings import QuantizeSettings

AGREEMENT_LEAST = 80.0
"""Per cent of equal predictions under which the stage says so loudly."""


def run(context: Context) -> Metrics:
    """Writes the INT8 files that the targets need, and `calibration.json`.

    Ranges come from training images alone; every file is then compared with the float file on the
    validation images, which calibration has not seen. Raises UsageError for a pattern of
    `quantize.exclude` that matches no node, StageError if calibration cannot find usable ranges or a file
    does not pass its proof.
    """
    recipes = needed_recipes(context.settings.targets)
    if not recipes:
        why = "no target has precision int8"
        context.progress.note(f"Nothing to quantise: {why}.")
        _write(context.output, {"needed": False, "why": why})
        return {"files": 0}
    settings: QuantizeSettings = context.settings.quantize
    progress = context.progress
    card = json.loads((context.inputs["export"] / "student.json").read_text(encoding="utf-8"))
    model = prepare(onnx.load(context.inputs["export"] / "student.onnx"))
    skipped = float_nodes(model, settings.exclude)
    data = load_data(context.settings.data)

    chosen = draw(data.train.labels, settings.images, context.settings.data.split_seed)
    images = audit(data.train.images, data.train.labels, chosen, data.classes, card["preprocessing"])
    for doubt in doubts(images):
        progress.note(doubt)
    ranges = _ranges(model, recipes, skipped, data, chosen, card, settings, progress)

    report: dict[str, Any] = {
        "needed": True,
        "settings": settings.model_dump(),
        "images": images,
        "ranges": _told(ranges),
        "constant_tensors": ranges.constant(),
        "float_nodes": sorted(skipped),
        "validation_images": len(data.validation),
        "files": {},
    }
    reference = _validation_logits(context.inputs["export"] / "student.onnx", data, card, progress, "float")
    require_spread(reference, "The student's float file", "stage quantize, validation images")
    report["float_top1"] = _top1(reference, data.validation.labels)
    metrics: Metrics = {"float_top1": report["float_top1"]}
    for recipe in recipes:
        path = context.output / recipe.file
        result = quantised(
            model, ranges, recipe, per_channel=settings.per_channel, skipped=skipped, card=card
        )
        path.write_bytes(result.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)
        # The signed file is judged node by node, as TensorRT computes it; ONNX Runtime is not its runtime.
        optimise = recipe.name == "x86"
        logits = _validation_logits(path, data, card, progress, recipe.name, optimise=optimise)
        figures = _figures(path, result, recipe, reference, logits, data.validation.labels)
        figures["row_by_row"] = row_by_row(path, data.validation.images, logits, card, optimise=optimise)
        fault = quantisation_fault(recipe.file, logits, reference, figures, agreement=settings.agreement)
        if fault and settings.prove:
            raise fault
        if fault:
            progress.note(f"{fault.what} {fault.why}; written all the same (quantize.prove: false)")
        figures["passed"] = fault is None
        report["files"][recipe.name] = figures
        _tell(recipe, figures, progress)
        metrics[f"{recipe.name}_size_bytes"] = figures["size_bytes"]
        metrics[f"{recipe.name}_agreement"] = figures["agreement"]
        metrics[f"{recipe.name}_top1"] = figures["top1"]
    _write(context.output, report)
    return {"files": len(recipes), **metrics}


def needed_recipes(targets: Sequence[TargetSettings]) -> list[Recipe]:
    """The recipes of the runtimes that are to run INT8, x86 first; none if no target is INT8.

    Raises UsageError for a runtime that nobody offers.
    """
    wanted = {registry.get(target.runtime).recipe for target in targets if target.precision == "int8"}
    return [recipe for name, recipe in RECIPES.items() if name in wanted]


def _ranges(
    model: onnx.ModelProto,
    recipes: Sequence[Recipe],
    skipped: set[str],
    data: DataSet,
    chosen: np.ndarray,
    card: Mapping[str, Any],
    settings: QuantizeSettings,
    progress: Progress,
) -> Ranges:
    """One calibration for all recipes: what they do with the ranges differs, not the ranges."""
    op_types = sorted({kind for recipe in recipes for kind in recipe.op_types})
    passes = 1 if settings.method in ("minmax", "moving_average") else 2
    done = 0

    def feeds() -> Iterator[np.ndarray]:
        nonlocal done
        for index in chosen:
            yield feed(data.train.images.batch(index[np.newaxis]), card)
            done += 1
            progress.update(done, passes * len(chosen), "images", calibrating=settings.method)

    return find_ranges(
        model,
        float_activations(model, op_types, skipped),
        feeds,
        method=settings.method,
        percentile=settings.percentile,
    )


def _validation_logits(
    path: Path,
    data: DataSet,
    card: Mapping[str, Any],
    progress: Progress,
    name: str,
    *,
    optimise: bool = True,
) -> np.ndarray:
    count = len(data.validation)
    return run_logits(
        open_session(path, optimise=optimise),
        data.validation.images,
        np.arange(count),
        card,
        told=lambda done: progress.update(done, count, "images", checking=name),
    )


def _figures(
    path: Path,
    model: onnx.ModelProto,
    recipe: Recipe,
    reference: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """What is to be known of one INT8 file; agreement and errors are against the float file."""
    parity = compare(reference, logits, batch=len(logits)).as_json()
    rms = float(np.sqrt(np.mean((reference.astype(np.float64) - logits) ** 2)))
    content = path.read_bytes()
    return {
        "file": recipe.file,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **count_nodes(model),
        "agreement": parity["top1_agreement"],
        "top1": _top1(logits, labels),
        "against_float": paired_accuracy(logits, reference, labels),
        "logit_max_abs": parity["max_abs"],
        "logit_rms_relative_to_std": float(f"{rms / max(float(reference.std()), 1e-12):.3g}"),
        "executed": "optimised" if recipe.name == "x86" else "node by node",
        "lint": tensorrt_ready(path) if recipe.name == "signed" else None,
    }


def _tell(recipe: Recipe, figures: Mapping[str, Any], progress: Progress) -> None:
    if figures["agreement"] < AGREEMENT_LEAST:
        progress.note(
            f"WARNING: {recipe.file} predicts as the float file for only {figures['agreement']:.1f} % of "
            f"the validation images (expected at least {AGREEMENT_LEAST:g} %). Try quantize.method: "
            "percentile or entropy, more quantize.images, or leave sensitive nodes in float with "
            "quantize.exclude; a float target may serve better."
        )
    for finding in figures["lint"] or ():
        progress.note(f"{recipe.file} is not fit for TensorRT: {finding}")


def _top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the images whose true class has the largest logit."""
    return round(100.0 * float((logits.argmax(axis=1) == labels).mean()), 4)


def _told(ranges: Ranges) -> dict[str, list[float]]:
    return {
        name: [float(f"{low:.7g}"), float(f"{high:.7g}")]
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    }


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": 1, **report}, indent=2, ensure_ascii=False) + "\n"
    (folder / "calibration.json").write_text(text, encoding="utf-8")
