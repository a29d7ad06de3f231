"""The stage quantize: the student's float ONNX file becomes INT8 files, one for each recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from pipeline.errors import StageError
from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics
from stages.data.load import DataSet
from stages.data.load import load as load_data
from stages.data.torchvision.sets import needs_download
from stages.data.torchvision.table import SETS
from stages.onnx_files.calibration import audit, divide, doubts, provenance
from stages.onnx_files.quantizing import RECIPES, Recipe, prepare
from stages.onnx_files.ranges import Method, Ranges, find_ranges, float_activations
from stages.quantization_aware.condition import may_run
from stages.quantization_aware.recovery import recover_accuracy
from stages.quantizing.calibration_sweep import choose_calibration, methods_to_try
from stages.quantizing.exclusion import leave_layers_in_float
from stages.quantizing.proof import note_warnings, write_and_check
from stages.quantizing.quantized_file import QuantizedFile, ValidationResult, validate
from stages.quantizing.reasons import profile_float_nodes
from stages.quantizing.reference import FloatReference, create_reference, top1
from stages.quantizing.settings import SECTION, QuantizeSettings, fine_tune_recipe
from stages.runtimes import registry
from stages.runtimes.settings import TargetSettings
from stages.training.batch_size import refuse_large_batch, refuse_unequal_shares


def check(settings: SimpleNamespace) -> None:
    """Raise UsageError for a batch size of the fine-tune that the training images do not fill.

    Only settings of the fine-tune itself count, unless it surely runs: the recipe of `distill` is checked
    there, and a fine-tune that is never needed refuses no profile.
    """
    own = settings.quantize.distill
    has_own_batches = own.batch_size is not None or own.fraction is not None or own.when == "always"
    if not has_own_batches or not may_run(settings) or not needed_recipes(settings.targets):
        return
    recipe = fine_tune_recipe(own, settings.distill)
    refuse_unequal_shares(recipe.batch_size, settings.compute.devices, SECTION)
    if not (settings.data.name in SETS and needs_download(settings.data)):
        count = round(len(load_data(settings.data).train) * recipe.fraction)
        refuse_large_batch(recipe.batch_size, count, SECTION)


def run(context: Context) -> Metrics:
    """Write the INT8 files that the targets need, and `calibration.json`.

    Ranges come only from training images, and other training images choose between methods. Every file is
    then compared with the float file on the validation images. One that loses too much is quantized again
    from the student that was fine-tuned under its rounding.

    Raises:
        UsageError: A pattern of `quantize.exclude` matches no node.
        StageError: Calibration has no usable range, or a file does not pass its proof.
    """
    recipes = needed_recipes(context.settings.targets)
    if not recipes:
        why = "no target has precision int8"
        context.progress.note(f"Nothing to quantize: {why}.")
        _write(context.output, {"needed": False, "why": why})
        return {"files": 0}
    card = json.loads((context.inputs["export"] / "student.json").read_text(encoding="utf-8"))
    source = prepare(onnx.load(context.inputs["export"] / "student.onnx"))
    float_reasons = profile_float_nodes(source, context.settings.quantize.exclude)
    reference, images = _reference(context, card)
    ranges = _ranges(source, recipes, float_reasons, reference)

    report: dict[str, Any] = {
        "needed": True,
        "settings": reference.settings.model_dump(),
        "images": images,
        "ranges": {},
        "constant_tensors": next(iter(ranges.values())).constant(),
        "float_nodes": float_reasons,
        "validation_images": len(reference.labels),
        "float_top1": top1(reference.float_validation, reference.labels),
        "files": {},
    }
    metrics: Metrics = {"files": len(recipes), "float_top1": report["float_top1"]}
    for recipe in recipes:
        file, calibration = choose_calibration(source, ranges, recipe, float_reasons, reference)
        file, validation, sensitivity = leave_layers_in_float(file, validate(file, reference), reference)
        report["ranges"][calibration["method"]] = _ranges_as_json(file.ranges)
        file, validation, fine_tune = recover_accuracy(file, validation, reference, context)
        figures = _write_file(file, validation, reference, context)
        figures |= {
            "calibration": calibration,
            "sensitivity": sensitivity,
            "quantization_aware": fine_tune,
        }
        report["files"][recipe.name] = figures
        metrics[f"{recipe.name}_size_bytes"] = figures["size_bytes"]
        metrics[f"{recipe.name}_agreement"] = figures["agreement"]
        metrics[f"{recipe.name}_top1"] = figures["top1"]
    _write(context.output, report)
    return metrics


def needed_recipes(targets: Sequence[TargetSettings]) -> list[Recipe]:
    """Return the recipes of the runtimes that run INT8, x86 first; none if no target is INT8.

    Raises:
        UsageError: No installed package has the runtime.
    """
    names = {registry.get(target.runtime).recipe for target in targets if target.precision == "int8"}
    return [recipe for name, recipe in RECIPES.items() if name in names]


def _reference(context: Context, card: Mapping[str, Any]) -> tuple[FloatReference, dict[str, Any]]:
    """Return the images and float logits that files are compared with, and the audit of the images."""
    settings = context.settings.quantize
    data: DataSet = load_data(context.settings.data)
    calibration, holdout = divide(
        data.train.labels, settings.images, settings.holdout, context.settings.data.split_seed
    )
    if not len(holdout):
        raise StageError(
            "There are too few training images to quantize.",
            where="stage quantize, calibration",
            why=f"no class has two of the {len(data.train)} training images, so none can be held out",
            hint="give more training images, or drop the int8 targets",
        )
    images = audit(data.train.images, data.train.labels, calibration, data.classes, card["preprocessing"])
    images |= provenance(
        data.train.images, calibration, holdout, data.validation.images, len(data.validation)
    )
    images["holdout"] = len(holdout)
    images["doubts"] = [*doubts(images), *_too_few(settings, calibration, holdout)]
    for doubt in images["doubts"]:
        context.progress.note(doubt)
    reference = create_reference(
        context.inputs["export"] / "student.onnx",
        card,
        data,
        settings,
        context.progress,
        calibration=calibration,
        holdout=holdout,
    )
    return reference, images


def _too_few(settings: QuantizeSettings, calibration: np.ndarray, holdout: np.ndarray) -> list[str]:
    """Return a sentence if there are fewer training images than the profile sets."""
    if len(calibration) == settings.images and len(holdout) == settings.holdout:
        return []
    return [
        f"{len(calibration)} images are used for calibration and {len(holdout)} are held out, not "
        f"{settings.images} and {settings.holdout}: the training set has no more."
    ]


def _ranges(
    source: onnx.ModelProto,
    recipes: Sequence[Recipe],
    float_reasons: Mapping[str, str],
    reference: FloatReference,
) -> dict[Method, Ranges]:
    """Return ranges by method; all recipes share them, and only use them differently."""
    op_types = sorted({kind for recipe in recipes for kind in recipe.op_types})
    tensors = float_activations(source, op_types, set(float_reasons))
    method = reference.settings.method
    methods = methods_to_try(reference.settings)
    return find_ranges(source, tensors, lambda: reference.calibration_feeds(method), methods)


def _write_file(
    file: QuantizedFile, validation: ValidationResult, reference: FloatReference, context: Context
) -> dict[str, Any]:
    """Write and check a finished file; return its figures."""
    figures, fault = write_and_check(file, validation, context.output / file.recipe.file, reference)
    if fault and reference.settings.prove:
        raise fault
    if fault:
        context.progress.note(
            f"{fault.what} {fault.why}; the file is written all the same (quantize.prove: false)"
        )
    note_warnings(file.recipe, figures, context.progress)
    return figures


def _ranges_as_json(ranges: Ranges) -> dict[str, list[float]]:
    return {
        name: [float(f"{low:.7g}"), float(f"{high:.7g}")]
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    }


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    write_json(folder / "calibration.json", {"schema_version": 1, **report})
