"""The build stage: every target for its runtime, and the teacher's baseline to compare with.

A target that this machine cannot build is recorded with the reason and the remedy; it ends the run only if
the profile marks it `required`. A target that was built and can run here is loaded and compared with its
source before it is measured. A target that its builder refuses, or that computes something else, is recorded
too, and fails the stage if it is required.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.errors import MachineCannot, StageError
from pipeline.json_files import write_json
from pipeline.machine import usable_cores
from pipeline.stage import Context, Metrics
from stages.runtimes import parity, registry
from stages.runtimes.base import Runtime, Source
from stages.runtimes.shipping import NOT_SHIPPED, what_ships
from stages.runtimes.tensorrt import options as tensorrt_options

BASELINE = "onnxruntime-fp32"
"""The target that the teacher is built for: the row that every other row is compared with."""


@dataclass(frozen=True)
class BuildItem:
    """One target to build, of the teacher or of the student.

    Attributes:
        model: "teacher" or "student".
        target: its name.
        required: whether a machine that cannot build it ends the run.
    """

    model: str
    target: str
    required: bool

    @property
    def folder(self) -> str:
        """The target's folder in the artefact."""
        return f"{self.model}/{self.target}"


def check(settings: SimpleNamespace) -> None:
    """Check the profile's targets and build settings.

    Raises:
        UsageError: a runtime is unknown, or does not offer the precision, or none of the runtimes can follow
            the settings.
    """
    runtimes = [registry.check_target(target.name).name for target in settings.targets]
    tensorrt_options.check_targets(runtimes, settings.build.model_dump())


def run(context: Context) -> Metrics:
    """Write a folder for each target, and `build.json`, the list of them (docs/reference/artefacts.md).

    Args:
        context: of the stage: `targets` and `build`, and the folders of `export` and `quantize`.

    Raises:
        UsageError: see `check`.
        StageError: a required target cannot be built, or computes something else than its source.
    """
    check(context.settings)
    items = [BuildItem("teacher", BASELINE, required=True)]
    items += [BuildItem("student", target.name, target.required) for target in context.settings.targets]
    for model in ("student", "teacher"):
        shutil.copyfile(context.inputs["export"] / f"{model}.json", context.output / f"{model}.json")
    context.work.mkdir(parents=True, exist_ok=True)

    rows, figures = [], []
    for done, item in enumerate(items):
        context.progress.update(done, len(items), "targets", target=item.target)
        row, item_figures = _build(item, context)
        rows.append(row)
        figures.append(item_figures)
    context.progress.update(len(items), len(items), "targets")

    listing = {"schema_version": 1, "targets": rows}
    write_json(context.output / "build.json", listing)
    return {
        "built": sum(row["built"] for row in rows),
        "not_built": sum(not row["built"] for row in rows),
        "targets": figures,
        "machine_cannot": [
            {"target": row["target"], "why": row["why_not"], "hint": row["hint"]}
            for row in rows
            if row["required"] and not row["built"]
        ],
    }


def _build(item: BuildItem, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build one target.

    Returns:
        The target's row of build.json, and its figures for the manifest: times and differences, which vary
        from machine to machine and so are not part of the artefact.
    """
    runtime = registry.check_target(item.target)
    precision = registry.target_parts(item.target)[1]
    row: dict[str, Any] = {
        "model": item.model,
        "target": item.target,
        "runtime": runtime.name,
        "precision": precision,
        "built": False,
        "why_not": None,
        "hint": None,
        "required": item.required,
        "folder": None,
        "files": [],
        "size_bytes": None,
        "sha256": None,
        "versions": {},
        "facts": {},
        "float_layers": None,
        "disproved": False,
    }
    figures: dict[str, Any] = {"model": item.model, "target": item.target, "built": False}
    ability = runtime.ability_to_build()
    row["versions"] = dict(sorted(ability.versions.items()))
    if not ability.can:
        return _not_built(item, row, figures, ability.why_not, ability.hint, context)

    source = _source(item, runtime, precision, context)
    row["float_layers"] = _float_layers(source)
    folder = context.output / item.folder
    folder.mkdir(parents=True)
    started = time.perf_counter()
    try:
        facts = runtime.build(source, folder, context.settings.build, context.progress, context.work)
        build_s = round(time.perf_counter() - started, 3)
        facts["checked"], checked = _check(item, runtime, source, folder, context, row)
    except (MachineCannot, StageError) as error:
        # A machine on which the target stopped running has disproved nothing.
        row["disproved"] = row["disproved"] and isinstance(error, StageError)
        if item.required and isinstance(error, StageError):
            raise
        shutil.rmtree(folder)
        why = f"{error.what}: {error.why}" if error.why else error.what
        return _not_built(item, row, figures, why, error.hint, context)
    for name in NOT_SHIPPED:
        if (folder / name).exists():  # it contains the entries of earlier targets, so the last file counts
            (folder / name).replace(context.output / name)
    shipped = what_ships(folder)
    row |= {
        "built": True,
        "folder": item.folder,
        "files": list(shipped.files),
        "size_bytes": shipped.size_bytes,
        "sha256": shipped.sha256,
        "facts": facts,
    }
    return row, figures | {"built": True, "build_s": build_s, "size_bytes": shipped.size_bytes} | checked


def _not_built(
    item: BuildItem, row: dict[str, Any], figures: dict[str, Any], why: str, hint: str, context: Context
) -> tuple[dict[str, Any], dict[str, Any]]:
    row |= {"why_not": why, "hint": hint or None}
    context.progress.note(f"{item.target} is not built: {why}")
    return row, figures


def _source(item: BuildItem, runtime: Runtime, precision: str, context: Context) -> Source:
    card = json.loads((context.inputs["export"] / f"{item.model}.json").read_text(encoding="utf-8"))
    preprocessing = card["preprocessing"]
    if precision == "int8":
        onnx = context.inputs["quantize"] / f"{item.model}.int8.{runtime.recipe}.onnx"
    else:
        onnx = context.inputs["export"] / f"{item.model}.onnx"
    if not onnx.is_file():
        raise StageError(
            f"the file that {item.target} is built from is missing",
            where=onnx.name,
            why=f"the {onnx.parent.name} artefact does not contain it",
            hint=f"kdpipe {'quantize' if precision == 'int8' else 'export'} PROFILE",
        )
    size = preprocessing["image_size"]
    images = context.inputs["export"] / "images.npy"
    return Source(
        onnx=onnx,
        precision=precision,
        image_shape=(size, size, preprocessing["channels"]),
        input=card["input"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        images=images if images.is_file() else None,
    )


def _float_layers(source: Source) -> list[str] | None:
    """Return the layers of an INT8 file that compute in float; None for others and damaged files."""
    from stages.onnx_files.float_layers import names_left_float

    if source.precision != "int8":
        return None
    try:
        return names_left_float(source.onnx)
    except Exception:  # protobuf's own class; the builder reports more about a damaged file
        return None


def _check(
    item: BuildItem, runtime: Runtime, source: Source, folder: Path, context: Context, row: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Compare a built target with its source.

    The row counts as disproved from the time when the target is loaded until its logits are proved right.

    Returns:
        How it was checked, in a sentence, and by how much it differs.
    """
    ability = runtime.ability_to_run()
    if not ability.can:
        context.progress.note(f"{item.target} is built, but not checked: {ability.why_not}")
        return f"not run here: {ability.why_not}", {}
    build = context.settings.build
    batches = parity.batches_within(build.batch_min, build.batch_max)
    session = runtime.load(folder, source, usable_cores())
    row["disproved"] = True
    name = f"{item.model} {item.target}"
    agreement = parity.find_agreement(session, source, batches, name)
    limits = parity.Limits(getattr(build, f"limit_{source.precision}"), build.agreement / 100.0)
    fault = parity.agreement_fault(agreement, source, batches, name, limits)
    if fault and build.prove:
        raise fault
    row["disproved"] = False
    if fault:
        context.progress.note(
            f"{fault.what}: {fault.why}; the target counts as built all the same (build.prove: false)"
        )
    if agreement.relative > parity.DOUBTFUL:
        context.progress.note(
            f"{item.target}: logits are {agreement.relative:.0%} of their spread away from the file it was "
            "built from; the scorecard shows what that costs in accuracy"
        )
    figures = {
        "effective_precision": session.facts.get("effective_precision"),
        "max_abs": float(f"{agreement.max_abs:.3g}"),
        "relative_to_std": float(f"{agreement.relative:.3g}"),
        "rows_relative_to_std": float(f"{agreement.rows_relative:.3g}"),
        "top1_agreement": round(100.0 * agreement.top1_agreement, 4),
        "images": agreement.images,
    }
    verdict = "agrees" if fault is None else "DOES NOT AGREE"
    return f"{verdict} with its source at batch {', '.join(map(str, batches))}", figures
