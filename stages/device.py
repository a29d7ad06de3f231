"""The scorecard of a device: rows from the raw samples that were taken there.

Not a stage of the line: `kdpipe device measure` brings the line up to date, has every target measured on the
device, and keeps what this makes of it as an artefact.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics
from stages.bundle.tolerance import TOLERANCE
from stages.devices import accuracy, carried
from stages.measuring import latency, scorecard

BUILT_THERE = ("model.engine", "engine.json", "timing.cache")


def run(context: Context) -> Metrics:
    """Leaves `scorecard.json`, `samples/`, `logs/`, `golden/` and `engines/` (docs/reference/artefacts.md).

    `context.settings.device` says `facts` (of the device), `targets`, `skipped` (by target, why it was
    not sent), and how many test `images` were run there. `context.inputs`: the stages that DEVICE reads,
    and under `results` a folder a target. Raises StageError
    if a target that the bundle has golden outputs of does not give them there.
    """
    asked = context.settings.device
    bundle, results = context.inputs["package"] / "bundle", context.inputs["results"]
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    card = json.loads((context.inputs["export"] / "student.json").read_text(encoding="utf-8"))
    for name in ("samples", "logs", "golden", "predictions"):
        (context.output / name).mkdir()
    images = accuracy.sent(asked["images"], context)
    rows = []
    for target in asked["targets"]:
        packed = manifest["targets"].get(target, {})
        runtime, _, precision = target.rpartition("-")
        known = {
            "built": bool(packed),
            "sha256": packed.get("sha256"),
            "size_bytes": packed.get("size_bytes"),
        }
        row = scorecard.row(
            {"model": "student", "target": target, "runtime": runtime, "precision": precision, **known}, card
        )
        row |= {"built_there": None, "golden": None, **accuracy.NONE}
        if target in asked["skipped"]:
            row |= {"why_not": asked["skipped"][target]}
        else:
            _fill(row, results / target, context)
            if row["latency"]:
                row["golden"] = _golden(row, results / target, bundle, context.output)
                row |= accuracy.figures(target, results / target, images, context)
        rows.append(row)
    document = {
        "schema_version": 1,
        "device": asked["facts"],
        "settings": context.settings.measure.model_dump(mode="json"),
        "float_top1": images.float_top1() if images else None,
        "rows": rows,
    }
    write_json(context.output / "scorecard.json", document)
    return {
        "targets": {
            row["target"]: {"p50_ms": scorecard.first_p50_ms(row), "top1": row["top1"]}
            for row in rows
            if row["latency"]
        },
        "not_measured": [
            {"target": row["target"], "why": row["why_not"]} for row in rows if not row["latency"]
        ],
    }


def _fill(row: dict[str, Any], folder: Path, context: Context) -> None:
    """The row's figures; samples, log and what was built there are copied into the artefact."""
    target = row["target"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shutil.copyfile(folder / "log.txt", context.output / "logs" / f"{target}.txt")
    built = result.get("build") or None
    if built:
        kept = context.output / "engines" / target
        kept.mkdir(parents=True)
        for name in BUILT_THERE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, kept / name)
        row |= {"sha256": built["sha256"], "size_bytes": built["size_bytes"]}
    row |= {"built": result["built"], "why_not": result["why_not"], "built_there": built}
    entries = [
        _entry(told, folder, target, context) for told in result["latency"] if told["samples"] is not None
    ]
    if not entries:
        return
    row["latency"] = entries
    row["throughput_ips"] = max(entry["throughput_ips"] for entry in entries)
    for name in (
        "peak_memory_bytes",
        "memory_over_idle_bytes",
        "load_ms",
        "first_inference_ms",
        "facts",
        "load_average",
        "clock",
        "clock_step_ns",
    ):
        row[name] = result[name]
    row["flags"] = sorted({flag for entry in entries for flag in entry["flags"]})


def _entry(told: dict[str, Any], folder: Path, target: str, context: Context) -> dict[str, Any]:
    for file in sorted(folder.glob(f"b{told['batch']}-t{told['threads']}*.npy")):
        shutil.copyfile(file, context.output / "samples" / f"{target}-{file.name}")
    samples = carried.read(told["samples"], folder)
    resamples = context.settings.measure.resamples
    entry = latency.summarise(samples, batch=told["batch"], threads=told["threads"], resamples=resamples)
    if told["too_many_threads"]:
        entry["flags"].append("more threads than cores")
    return {**entry, "cores": told["cores"], "first_inference_ms": told["first_ms"]}


def _golden(row: dict[str, Any], folder: Path, bundle: Path, output: Path) -> dict[str, Any] | None:
    """How far the device's outputs for the golden images are from those that were kept.

    An INT8 engine that was built there and has no golden outputs of its own is held against the fp32 file's
    without a verdict: quantizing alone moves them. Raises StageError for outputs beyond the tolerance.
    """
    found = np.load(folder / "logits.npy", allow_pickle=False)
    np.save(output / "golden" / f"{row['target']}.npy", found)
    files = [bundle / "golden" / f"{name}.npy" for name in (row["target"], "onnxruntime-fp32")]
    reference = next((file for file in files if file.is_file()), None)
    if reference is None:
        return None
    expected = np.load(reference, allow_pickle=False)
    tolerance, least = TOLERANCE[row["precision"]]
    largest = float(np.abs(found - expected).max()) / max(float(expected.std()), 1e-12)
    alike = float((found.argmax(1) == expected.argmax(1)).mean())
    judged = reference == files[0] or row["precision"] != "int8"
    if judged and (not largest <= tolerance or alike < least):
        raise StageError(
            f"{row['target']} does not give its golden outputs on the device",
            where=f"target {row['target']}",
            why=f"largest logit difference {largest:.2g} of their standard deviation "
            f"(at most {tolerance:g}), {alike:.0%} of {len(found)} images alike (at least {least:.0%})",
            hint="leave the target out of the device's targets, or build it for that device",
        )
    return {
        "of": reference.stem,
        "images": len(found),
        "agreement": round(100.0 * alike, 4),
        "largest_relative_to_std": float(f"{largest:.3g}"),
        "passed": True if judged else None,
    }
