"""measure: the latency profile of every built target, and its accuracy by that very file.

Teacher's baseline first, then every target of the student. Each is measured in a fresh
subprocess: latency at every batch size and thread count, peak memory, and the logits of the whole
test set, from which accuracy and agreement follow.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.stage import Context, Metrics
from stages.data import load as data
from stages.measuring import machine, scorecard
from stages.runtimes import registry

WORKER_GRACE_S = 600.0
"""How long a worker may take beyond its planned sampling before it counts as hung."""


def run(context: Context) -> Metrics:
    settings = context.settings
    build_folder, evaluate_folder = context.inputs["build"], context.inputs["evaluate"]
    build = _read(build_folder / "build.json")
    judged = _read(evaluate_folder / "metrics.json")
    cards = {role: _read(build_folder / f"{role}.json") for role in ("teacher", "student")}

    test = data.load(settings.data).test
    images_file = context.work / "test_images.npy"
    context.work.mkdir(parents=True, exist_ok=True)
    images = _store_images(test, images_file)
    golden = _golden_indices(test.labels, settings.measure.golden_images)
    (context.output / "golden").mkdir()
    (context.output / "samples").mkdir()
    (context.output / "predictions").mkdir()
    np.save(context.output / "predictions" / "labels.npy", test.labels.astype(np.int32))
    np.save(context.output / "golden" / "inputs.npy", images[golden])
    np.save(context.output / "golden" / "labels.npy", test.labels[golden])

    targets = sorted(build["targets"], key=lambda target: target["model"] != "teacher")
    rows: list[dict[str, Any]] = []
    logits: dict[tuple[str, str], np.ndarray] = {}
    for done, target in enumerate(targets):
        context.progress.update(done, len(targets), "targets", target=target["target"])
        row = scorecard.row(target, cards[target["model"]])
        rows.append(row)
        if not target["built"]:
            continue
        ability = registry.get(target["runtime"]).ability_to_run()
        if not ability.can:
            row["why_not"] = f"built, but not measured: {ability.why_not}"
            row["mend"] = ability.mend or None
            context.progress.note(f"{target['target']}: {row['why_not']}")
            continue
        card = cards[target["model"]]
        found, result = _measure_in_subprocess(context, target, card, images_file, settings)
        logits[target["model"], target["target"]] = found
        _fill(row, result)
        row.update(scorecard.accuracy(found, test.labels))
        predicted = context.output / "predictions" / f"{target['model']}-{target['target']}.npy"
        np.save(predicted, found.argmax(axis=1).astype(np.int32))
        for entry in result["latency"]:
            name = f"b{entry['batch']}-t{entry['threads']}.npy"
            raw = context.work / _slug(target) / name
            if raw.exists():
                kept = f"{target['model']}-{target['target']}-{name}"
                shutil.copyfile(raw, context.output / "samples" / kept)
        np.save(context.output / "golden" / f"{target['model']}-{target['target']}.npy", found[golden])
    context.progress.update(len(targets), len(targets), "targets")

    _compare(rows, logits, judged)
    recommendation = scorecard.recommend(rows, judged["student"]["top1"])
    card_json = {
        "schema_version": 1,
        "machine": machine.describe(),
        "settings": settings.measure.model_dump(mode="json"),
        "test_images": len(test.labels),
        "float_top1": {"teacher": judged["teacher"]["top1"], "student": judged["student"]["top1"]},
        "rows": rows,
        "distillation": judged["distillation"],
        "recommendation": recommendation,
    }
    text = json.dumps(card_json, indent=2, ensure_ascii=False)
    (context.output / "scorecard.json").write_text(text + "\n", encoding="utf-8")
    return _metrics(rows, recommendation, judged)


def _measure_in_subprocess(
    context: Context,
    target: dict[str, Any],
    card: dict[str, Any],
    images_file: Path,
    settings: SimpleNamespace,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits (n, classes) of the test images by this target's file, and the worker's result."""
    output = context.work / _slug(target)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    preprocessing = card["preprocessing"]
    size = preprocessing["image_size"]
    measure = settings.measure
    job = {
        "runtime": target["runtime"],
        "precision": target["precision"],
        "folder": str(context.inputs["build"] / target["folder"]),
        "image_shape": [size, size, preprocessing["channels"]],
        "input": card["input"],
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "batch_max": target.get("facts", {}).get("batch_max") or 2**31,
        "images": str(images_file),
        "output": str(output),
        "settings": measure.model_dump(mode="json"),
    }
    job_file = output / "job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    combinations = len(measure.batch_sizes) * len(measure.threads)
    limit_s = combinations * (measure.warmup_s + measure.max_duration_s) + WORKER_GRACE_S
    command = [sys.executable, "-m", "stages.measuring.worker", str(job_file)]
    # The worker must find the same kdpipe as its parent, also where that is not installed.
    home = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, *sys.path[1:]])}
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise StageError(
            f"measuring {target['target']} hung",
            where=f"stage measure, target {target['target']}",
            why=f"no result within {limit_s:.0f} s",
            mend="run it again; if it hangs again, leave the target out of `targets`",
        ) from None
    result_file = output / "result.json"
    if finished.returncode != 0 or not result_file.exists():
        raise StageError(
            f"the process that measured {target['target']} ended without a result",
            where=f"stage measure, target {target['target']}",
            why=_last_words(finished),
            mend="if it was killed for memory, lower measure.accuracy_batch or measure.batch_sizes",
        )
    result = _read(result_file)
    if "error" in result:
        error = result["error"]
        raise StageError(
            error["what"],
            where=error["where"] or f"stage measure, target {target['target']}",
            why=error["why"],
            mend=error["mend"],
        )
    return np.load(output / "logits.npy"), result


def _fill(row: dict[str, Any], result: dict[str, Any]) -> None:
    row["latency"] = [entry for entry in result["latency"] if entry["n"]]
    row["throughput_ips"] = max((entry["throughput_ips"] for entry in row["latency"]), default=None)
    for name in ("peak_memory_bytes", "memory_over_idle_bytes", "load_ms", "first_inference_ms", "facts"):
        row[name] = result[name]
    row["effective_precision"] = result["facts"].get("effective_precision")
    row["load_average"] = result["load_average"]
    row["clock"] = result["clock"]
    row["clock_step_ns"] = result["clock_step_ns"]
    row["flags"] = sorted({flag for entry in result["latency"] for flag in entry["flags"]})


def _compare(
    rows: list[dict[str, Any]], logits: dict[tuple[str, str], np.ndarray], judged: dict[str, Any]
) -> None:
    """Agreement with teacher and float student, and speed against the teacher's baseline."""
    predictions = {role: np.asarray(judged[role]["predictions"]) for role in ("teacher", "student")}
    baseline = next((r for r in rows if r["model"] == "teacher" and r["latency"]), None)
    for row in rows:
        found = logits.get((row["model"], row["target"]))
        if found is None:
            continue
        row["agreement"] = scorecard.agreement(found, predictions["teacher"])
        row["agreement_with_float"] = scorecard.agreement(found, predictions[row["model"]])
        own = scorecard.first_p50_ms(row)
        of_teacher = scorecard.first_p50_ms(baseline) if baseline else None
        if own and of_teacher:
            row["speedup"] = round(of_teacher / own, 3)


def _metrics(rows: list[dict[str, Any]], recommendation: dict[str, Any], judged: dict[str, Any]) -> Metrics:
    measured = [row for row in rows if row["top1"] is not None]
    return {
        "targets": {
            f"{row['model']}/{row['target']}": {
                "top1": row["top1"],
                "p50_ms": scorecard.first_p50_ms(row),
                "speedup": row["speedup"],
                "size_bytes": row["size_bytes"],
            }
            for row in measured
        },
        "not_built": [
            {"target": row["target"], "why": row["why_not"]} for row in rows if row["top1"] is None
        ],
        "recommended": recommendation["target"],
        "distillation_gain_points": (judged["distillation"] or {}).get("gain_points"),
    }


def _golden_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Test images spread over the classes: (min(count, n),) sorted indices, the same every time."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rounds = zip_longest(*by_class)  # the first image of every class, then the second, ...
    spread = [int(index) for one_each in rounds for index in one_each if index is not None]
    return np.sort(np.asarray(spread[:count], dtype=np.int64))


def _store_images(test: Any, path: Path) -> np.ndarray:
    """Writes the test images as one uint8 NHWC file that workers map, and returns the mapping."""
    height, width, channels = test.images.shape
    shape = (len(test), height, width, channels)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(test), 1024):
        indices = np.arange(start, min(start + 1024, len(test)))
        mapped[indices] = test.images.batch(indices)
    mapped.flush()
    return mapped


def _slug(target: dict[str, Any]) -> str:
    return f"{target['model']}-{target['target']}"


def _last_words(finished: subprocess.CompletedProcess[str]) -> str:
    if finished.returncode < 0:
        return f"it was ended by {signal.Signals(-finished.returncode).name}"
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {finished.returncode}, and nothing said"


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
