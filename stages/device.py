"""The scorecard of a device: rows from the raw samples that were taken there.

Not a stage of the line: `kdpipe device measure` brings the line up to date, measures every target on the
    device,
and publishes what this returns as an artefact.
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
from stages.devices import accuracy, sample_files
from stages.measuring import latency, scorecard

BUILT_THERE = ("model.engine", "engine.json", "timing.cache")


def run(context: Context) -> Metrics:
    """Write `scorecard.json`, `samples/`, `logs/`, `golden/` and `engines/` (docs/reference/artefacts.md).

    Args:
        context: `settings.device` has `facts` (of the device), `targets`, `skipped` (by target, why it was
            not sent) and `images` (how many test images were run there). `inputs` has the stages that DEVICE
            reads, and under `results` a folder for each target.

    Raises:
        StageError: a target of the bundle does not give its golden outputs there.
    """
    device = context.settings.device
    bundle, results = context.inputs["package"] / "bundle", context.inputs["results"]
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    card = json.loads((context.inputs["export"] / "student.json").read_text(encoding="utf-8"))
    for name in ("samples", "logs", "golden", "predictions"):
        (context.output / name).mkdir()
    images = accuracy.device_test_set(device["images"], context)
    rows = []
    for target in device["targets"]:
        packed = manifest["targets"].get(target, {})
        runtime, _, precision = target.rpartition("-")
        built = {
            "built": bool(packed),
            "sha256": packed.get("sha256"),
            "size_bytes": packed.get("size_bytes"),
        }
        row = scorecard.row(
            {"model": "student", "target": target, "runtime": runtime, "precision": precision, **built}, card
        )
        row |= {"built_there": None, "golden": None, **accuracy.NONE}
        if target in device["skipped"]:
            row |= {"why_not": device["skipped"][target]}
        else:
            _fill(row, results / target, context)
            if row["latency"]:
                row["golden"] = _golden(row, results / target, bundle, context.output)
                row |= accuracy.figures(target, results / target, images, context)
        rows.append(row)
    document = {
        "schema_version": 1,
        "device": device["facts"],
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
    """Fill the row in; copy samples, log and the files that were built there into the artefact."""
    target = row["target"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shutil.copyfile(folder / "log.txt", context.output / "logs" / f"{target}.txt")
    built = result.get("build") or None
    if built:
        engine_folder = context.output / "engines" / target
        engine_folder.mkdir(parents=True)
        for name in BUILT_THERE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, engine_folder / name)
        row |= {"sha256": built["sha256"], "size_bytes": built["size_bytes"]}
    row |= {"built": result["built"], "why_not": result["why_not"], "built_there": built}
    entries = [
        _entry(taken, folder, target, context) for taken in result["latency"] if taken["samples"] is not None
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


def _entry(taken: dict[str, Any], folder: Path, target: str, context: Context) -> dict[str, Any]:
    for file in sorted(folder.glob(f"b{taken['batch']}-t{taken['threads']}*.npy")):
        shutil.copyfile(file, context.output / "samples" / f"{target}-{file.name}")
    samples = sample_files.read_samples(taken["samples"], folder)
    resamples = context.settings.measure.resamples
    entry = latency.summarise(samples, batch=taken["batch"], threads=taken["threads"], resamples=resamples)
    if taken["too_many_threads"]:
        entry["flags"].append("more threads than cores")
    return {**entry, "cores": taken["cores"], "first_inference_ms": taken["first_ms"]}


def _golden(row: dict[str, Any], folder: Path, bundle: Path, output: Path) -> dict[str, Any] | None:
    """Return how far the device's outputs for the golden images are from the bundle's golden outputs.

    An INT8 engine that was built there and has no golden outputs of its own is compared with the fp32 file's
    without a verdict: quantizing by itself moves them. Raise StageError for outputs beyond the tolerance.
    """
    logits = np.load(folder / "logits.npy", allow_pickle=False)
    np.save(output / "golden" / f"{row['target']}.npy", logits)
    files = [bundle / "golden" / f"{name}.npy" for name in (row["target"], "onnxruntime-fp32")]
    reference = next((file for file in files if file.is_file()), None)
    if reference is None:
        return None
    expected = np.load(reference, allow_pickle=False)
    tolerance, least = TOLERANCE[row["precision"]]
    largest = float(np.abs(logits - expected).max()) / max(float(expected.std()), 1e-12)
    alike = float((logits.argmax(1) == expected.argmax(1)).mean())
    judged = reference == files[0] or row["precision"] != "int8"
    if judged and (not largest <= tolerance or alike < least):
        raise StageError(
            f"{row['target']} does not give its golden outputs on the device",
            where=f"target {row['target']}",
            why=f"largest logit difference {largest:.2g} of their standard deviation "
            f"(at most {tolerance:g}), {alike:.0%} of {len(logits)} images alike (at least {least:.0%})",
            hint="leave the target out of the device's targets, or build it for that device",
        )
    return {
        "of": reference.stem,
        "images": len(logits),
        "agreement": round(100.0 * alike, 4),
        "largest_relative_to_std": float(f"{largest:.3g}"),
        "passed": True if judged else None,
    }
