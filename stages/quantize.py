"""The stage quantize: the student's float ONNX file becomes INT8 files, one a recipe."""

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
from stages.quantization_aware.recovering import recovered
from stages.quantizing.bench import Bench, open_bench, top1
from stages.quantizing.exclusion import relieved
from stages.quantizing.making import Judged, Made, judge
from stages.quantizing.proving import figures_of, tell
from stages.quantizing.reasons import kept_by_the_profile
from stages.quantizing.settings import SECTION, QuantizeSettings, recipe_of
from stages.quantizing.sweeping import calibrated, methods_of
from stages.runtimes import registry
from stages.runtimes.settings import TargetSettings
from stages.training import batches


def check(settings: SimpleNamespace) -> None:
    """Raises UsageError for batches of the fine-tune that cannot be made of the training images.

    Only what the profile says of the fine-tune itself counts, unless it surely runs: what it takes over from
    `distill` was looked at there, and a fine-tune that is never needed refuses no profile.
    """
    own = settings.quantize.distill
    said = own.batch_size is not None or own.fraction is not None or own.when == "always"
    if not said or not may_run(settings) or not needed_recipes(settings.targets):
        return
    recipe = recipe_of(own, settings.distill)
    batches.refuse_unequal_shares(recipe, settings.compute.devices, SECTION)
    if not (settings.data.name in SETS and needs_download(settings.data)):
        count = round(len(load_data(settings.data).train) * recipe.fraction)
        batches.refuse_large_batch(recipe, count, SECTION)


def run(context: Context) -> Metrics:
    """Writes the INT8 files that the targets need, and `calibration.json`.

    Ranges come from training images alone, and what is chosen is chosen on others of them; every file is
    then compared with the float file on the validation images, and one that loses too much is made again of
    the student fine-tuned under its rounding. Raises UsageError for a pattern of `quantize.exclude` that
    matches no node, StageError if calibration cannot find usable ranges or a file does not pass its proof.
    """
    recipes = needed_recipes(context.settings.targets)
    if not recipes:
        why = "no target has precision int8"
        context.progress.note(f"Nothing to quantize: {why}.")
        _write(context.output, {"needed": False, "why": why})
        return {"files": 0}
    card = json.loads((context.inputs["export"] / "student.json").read_text(encoding="utf-8"))
    source = prepare(onnx.load(context.inputs["export"] / "student.onnx"))
    kept_float = kept_by_the_profile(source, context.settings.quantize.exclude)
    bench, images = _bench(context, card)
    found = _ranges(source, recipes, kept_float, bench)

    report: dict[str, Any] = {
        "needed": True,
        "settings": bench.settings.model_dump(),
        "images": images,
        "ranges": {},
        "constant_tensors": next(iter(found.values())).constant(),
        "float_nodes": kept_float,
        "validation_images": len(bench.labels),
        "float_top1": top1(bench.float_validation, bench.labels),
        "files": {},
    }
    metrics: Metrics = {"files": len(recipes), "float_top1": report["float_top1"]}
    for recipe in recipes:
        made, calibration = calibrated(source, found, recipe, kept_float, bench)
        made, judged, sensitivity = relieved(made, judge(made, bench), bench)
        report["ranges"][calibration["method"]] = _told(made.ranges)
        made, judged, tuned = recovered(made, judged, bench, context)
        figures = _leave(made, judged, bench, context)
        figures |= {
            "calibration": calibration,
            "sensitivity": sensitivity,
            "quantization_aware": tuned,
        }
        report["files"][recipe.name] = figures
        metrics[f"{recipe.name}_size_bytes"] = figures["size_bytes"]
        metrics[f"{recipe.name}_agreement"] = figures["agreement"]
        metrics[f"{recipe.name}_top1"] = figures["top1"]
    _write(context.output, report)
    return metrics


def needed_recipes(targets: Sequence[TargetSettings]) -> list[Recipe]:
    """The recipes of the runtimes that are to run INT8, x86 first; none if no target is INT8.

    Raises UsageError for a runtime that nobody offers.
    """
    wanted = {registry.get(target.runtime).recipe for target in targets if target.precision == "int8"}
    return [recipe for name, recipe in RECIPES.items() if name in wanted]


def _bench(context: Context, card: Mapping[str, Any]) -> tuple[Bench, dict[str, Any]]:
    """What files are made with and judged on, and what was found when the images were looked at."""
    settings = context.settings.quantize
    data: DataSet = load_data(context.settings.data)
    calibration, holdout = divide(
        data.train.labels, settings.images, settings.holdout, context.settings.data.split_seed
    )
    if not len(holdout):
        raise StageError(
            "There are too few training images to quantize.",
            where="stage quantize, calibration",
            why=f"the {len(data.train)} training images hold no class twice, so that none can be held out",
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
    bench = open_bench(
        context.inputs["export"] / "student.onnx",
        card,
        data,
        settings,
        context.progress,
        calibration=calibration,
        holdout=holdout,
    )
    return bench, images


def _too_few(settings: QuantizeSettings, calibration: np.ndarray, holdout: np.ndarray) -> list[str]:
    """What to say if there are fewer training images than were asked for."""
    if len(calibration) == settings.images and len(holdout) == settings.holdout:
        return []
    return [
        f"{len(calibration)} images are calibrated with and {len(holdout)} held out, not {settings.images} "
        f"and {settings.holdout}: the training set has no more."
    ]


def _ranges(
    source: onnx.ModelProto, recipes: Sequence[Recipe], kept_float: Mapping[str, str], bench: Bench
) -> dict[Method, Ranges]:
    """By method. One calibration for all recipes: what they do with the ranges differs, not the ranges."""
    op_types = sorted({kind for recipe in recipes for kind in recipe.op_types})
    tensors = float_activations(source, op_types, set(kept_float))
    methods = methods_of(bench.settings)
    return find_ranges(source, tensors, lambda: bench.calibration_feeds(bench.settings.method), methods)


def _leave(made: Made, judged: Judged, bench: Bench, context: Context) -> dict[str, Any]:
    """Writes and proves a finished file; returns its figures."""
    figures, fault = figures_of(made, judged, context.output / made.recipe.file, bench)
    if fault and bench.settings.prove:
        raise fault
    if fault:
        context.progress.note(f"{fault.what} {fault.why}; written all the same (quantize.prove: false)")
    tell(made.recipe, figures, context.progress)
    return figures


def _told(ranges: Ranges) -> dict[str, list[float]]:
    return {
        name: [float(f"{low:.7g}"), float(f"{high:.7g}")]
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    }


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    write_json(folder / "calibration.json", {"schema_version": 1, **report})
