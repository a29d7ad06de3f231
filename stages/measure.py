"""measure: latency, memory, size and accuracy of every built target, by the file that ships.

The teacher's baseline is first, then every target of the student. Each measurement has a new process, bound
to its cores: latency and peak memory at every batch size and thread count, latency under scheduled arrivals,
and the logits of the whole test set, from which accuracy and agreement are computed. Then targets of one
runtime are timed in turns, to decide which is faster.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine
from pipeline.heartbeat import Beat
from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics, Progress
from stages.data import load as data
from stages.measuring import comparisons, launch, scorecard
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from stages.measuring.worker import WARM_UP
from stages.runtimes import registry
from stages.statistics.intervals import paired_difference
from stages.statistics.steadiness import STEADY_RULE


def run(context: Context) -> Metrics:
    """Measure the targets; write scorecard.json, raw samples, predictions and golden outputs."""
    settings = context.settings
    build_folder, evaluate_folder = context.inputs["build"], context.inputs["evaluate"]
    build = _read(build_folder / "build.json")
    judged = _read(evaluate_folder / "metrics.json")
    cards = {role: _read(build_folder / f"{role}.json") for role in ("teacher", "student")}

    test = data.load(settings.data).test
    images_file = context.work / "test_images.npy"
    context.work.mkdir(parents=True, exist_ok=True)
    images = _store_images(test, images_file)
    earlier = _earlier(settings.measure, cards["student"], images_file, context)
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
    subjects: list[Subject] = []
    for done, target in enumerate(targets):
        context.progress.update(done, len(targets), "targets", target=target["target"])
        row = scorecard.row(target, cards[target["model"]])
        rows.append(row)
        if not target["built"]:
            continue
        ability = registry.get(target["runtime"]).ability_to_run()
        if not ability.can:
            row["why_not"] = f"built, but not measured: {ability.why_not}"
            row["hint"] = ability.hint or None
            context.progress.note(f"{target['target']}: {row['why_not']}")
            continue
        folder = build_folder / target["folder"]
        subject = Subject(target, cards[target["model"]], folder, images_file, context.work)
        subjects.append(subject)
        reporter = TargetProgress(context.progress, settings.measure, subject, done, len(targets))
        outputs = _measure(subject, settings.measure, row, context.output / "samples", reporter)
        logits[target["model"], target["target"]] = outputs
        predictions = outputs.argmax(axis=1)
        row.update(scorecard.top1(predictions, test.labels))
        np.save(context.output / "predictions" / f"{subject.slug}.npy", predictions.astype(np.int32))
        np.save(context.output / "golden" / f"{subject.slug}.npy", outputs[golden])
    context.progress.update(len(targets), len(targets), "targets")

    _compare(rows, logits, judged, test.labels)
    compared = comparisons.measure(
        subjects,
        settings.measure,
        context.output / "samples",
        context.progress,
        earlier=earlier,
    )
    card_json = {
        "schema_version": 1,
        "machine": machine.describe(),
        "settings": settings.measure.model_dump(mode="json", exclude={"reference"}),
        "test_images": len(test.labels),
        "float_top1": {"teacher": judged["teacher"]["top1"], "student": judged["student"]["top1"]},
        "steady_state_rule": STEADY_RULE,
        "rows": rows,
        "comparisons": compared,
        "distillation": judged["distillation"],
    }
    write_json(context.output / "scorecard.json", card_json)
    return _metrics(rows, judged)


@dataclass(frozen=True)
class TargetProgress:
    """A listener that reports the beats of a target's workers as progress: images done, or the time left.

    Attributes:
        progress: Where to report.
        measure: How the target is measured.
        subject: The target.
        done: How many targets have been measured.
        total: How many there are.
    """

    progress: Progress
    measure: MeasureSettings
    subject: Subject
    done: int
    total: int

    def __call__(self, beat: Beat, **combination: int | float) -> None:
        """Report a beat.

        Args:
            beat: Of the worker.
            combination: What is measured now: batch, threads, rate.
        """
        figures: dict[str, int | float | str] = {"target": self.subject.slug.replace("-", "/", 1)}
        figures |= {**combination, "phase": beat.phase, "of": f"{self.done + 1}/{self.total} targets"}
        if not beat.total:
            self.progress.update(self.done, self.total, "targets", **figures)
        elif beat.unit == "s":
            left_s = beat.total - beat.done
            if beat.phase == WARM_UP:  # it ends when latencies are steady, usually after its minimum
                left_s = max(self.measure.warmup_s - beat.done, 0.0) + self.measure.duration_s
            share = 100.0 * min(beat.done / beat.total, 1.0)
            self.progress.update(round(share, 1), 100.0, "%", **figures, eta_s=round(max(left_s, 0.0), 1))
        else:
            self.progress.update(min(beat.done, beat.total), beat.total, beat.unit, **figures)


def _measure(
    subject: Subject, measure: MeasureSettings, row: dict[str, Any], samples: Path, reporter: TargetProgress
) -> np.ndarray:
    """Fill the row, with a worker for each figure; return the logits (n, classes) of the test images."""
    results = []
    for threads in measure.threads:
        for batch in measure.batch_sizes:
            if not subject.accepts_batch(batch):
                continue
            report = partial(reporter, batch=batch, threads=threads)
            result, output = launch.run(
                subject, measure, "latency", on_beat=report, batch=batch, threads=threads
            )
            results.append(result)
            name = f"{subject.slug}-b{batch}-t{threads}"
            shutil.copyfile(output / "samples.npy", samples / f"{name}.npy")
            shutil.copyfile(output / "cpu.npy", samples / f"{name}-cpu.npy")
    if results:
        _fill(row, results)
    row["open_loop"] = _under_load(subject, measure, samples, reporter)
    # A profile with several thread counts usually lists the largest, for which there are cores, last.
    _, output = launch.run(subject, measure, "accuracy", on_beat=reporter, threads=measure.threads[-1])
    logits: np.ndarray = np.load(output / "logits.npy")
    return logits


def _earlier(
    measure: MeasureSettings, card: dict[str, Any], images: Path, context: Context
) -> dict[str, Subject]:
    """Return the targets of the profile's reference bundle that run on this machine."""
    if not measure.reference:
        return {}
    from stages.measuring import reference_bundle

    bundle = reference_bundle.subjects(measure.reference, card, images, context.work)
    return reference_bundle.runnable(bundle, context.progress)


def _under_load(
    subject: Subject, measure: MeasureSettings, samples: Path, reporter: TargetProgress
) -> list[dict[str, Any]]:
    """Return one entry per arrival rate, at the first batch size and thread count."""
    batch, threads = measure.batch_sizes[0], measure.threads[0]
    entries: list[dict[str, Any]] = []
    if not subject.accepts_batch(batch):
        return entries
    for rate in measure.arrival_rates:
        entry, output = launch.run(
            subject,
            measure,
            "open_loop",
            on_beat=partial(reporter, batch=batch, threads=threads, rate=rate),
            batch=batch,
            threads=threads,
            rate_per_s=rate,
        )
        entries.append(entry)
        file_name = f"{subject.slug}-b{batch}-t{threads}-at{rate:g}.npy"
        shutil.copyfile(output / "served.npy", samples / file_name)
    return entries


def _fill(row: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Fill the row from the results of all combinations.

    Where a row has a single value, it is that of the first combination; of memory it is the highest.
    """
    first = results[0]
    row["latency"] = [result["entry"] for result in results]
    row["throughput_ips"] = max(entry["throughput_ips"] for entry in row["latency"])
    for name in ("load_ms", "first_inference_ms"):
        row[name] = first["entry"][name]
    for name in ("peak_memory_bytes", "memory_over_idle_bytes"):
        row[name] = max(result[name] for result in results)
    for name in ("facts", "clock", "clock_step_ns"):
        row[name] = first[name]
    row["energy"] = first["entry"]["energy"]
    row["effective_precision"] = first["facts"].get("effective_precision")
    row["load_average"] = [first["load_average"][0], results[-1]["load_average"][1]]
    row["flags"] = sorted({flag for entry in row["latency"] for flag in entry["flags"]})


def _compare(
    rows: list[dict[str, Any]],
    logits: dict[tuple[str, str], np.ndarray],
    judged: dict[str, Any],
    labels: np.ndarray,
) -> None:
    """Fill each row's agreement with teacher and float network, its change in accuracy, and its speed-up.

    Accuracy is compared with the same network's in PyTorch, speed with the teacher's baseline.
    """
    predictions = {role: np.asarray(judged[role]["predictions"]) for role in ("teacher", "student")}
    baseline = next((r for r in rows if r["model"] == "teacher" and r["latency"]), None)
    for row in rows:
        outputs = logits.get((row["model"], row["target"]))
        if outputs is None:
            continue
        predicted = outputs.argmax(axis=1)
        row["agreement"] = scorecard.agreement(predicted, predictions["teacher"])
        row["agreement_with_float"] = scorecard.agreement(predicted, predictions[row["model"]])
        right, before = predicted == labels, predictions[row["model"]] == labels
        row["against_float"] = paired_difference(right, before)
        row["speedup"] = scorecard.speedup(row, baseline)


def _metrics(rows: list[dict[str, Any]], judged: dict[str, Any]) -> Metrics:
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
        "distillation_gain_points": (judged["distillation"] or {}).get("gain_points"),
    }


def _golden_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of test images spread over the classes: (min(count, n),), sorted, deterministic."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rounds = zip_longest(*by_class)  # the first image of every class, then the second, ...
    spread = [int(index) for images in rounds for index in images if index is not None]
    return np.sort(np.asarray(spread[:count], dtype=np.int64))


def _store_images(test: Any, path: Path) -> np.ndarray:
    """Write the test images as one uint8 NHWC file for the workers, and return its memory map."""
    height, width, channels = test.images.shape
    shape = (len(test), height, width, channels)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(test), 1024):
        indices = np.arange(start, min(start + 1024, len(test)))
        mapped[indices] = test.images.batch(indices)
    mapped.flush()
    return mapped


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
