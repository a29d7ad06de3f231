"""Judge gates on measured values: passed, missed beyond noise, or undecided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stages.gating.settings import METRICS, GateSettings, Metric
from stages.measuring.reference_bundle import MODEL as REFERENCE
from stages.statistics.intervals import wilson_interval
from stages.statistics.paired import Interval, paired_interval, percentile_interval

Status = Literal["passed", "missed", "undecided"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: The value; None if it was not measured.
        interval: Its 95 % interval; None if the value is exact.
        why: Why there is no value.
        flags: What makes a latency doubtful (docs/concepts/measuring.md).
        least: The shortest sample of a latency, in milliseconds.
    """

    value: float | None
    interval: Interval | None = None
    why: str = ""
    flags: tuple[str, ...] = ()
    least: float | None = None


@dataclass(frozen=True)
class Measured:
    """The measurements that gates are judged on.

    Attributes:
        folder: The folder of measure's artefact.
        scorecard: The content of its `scorecard.json`.
        evaluation: The content of evaluate's `metrics.json`.
    """

    folder: Path
    scorecard: Mapping[str, Any]
    evaluation: Mapping[str, Any]

    @property
    def rows(self) -> list[Row]:
        """The rows of the student's targets."""
        return [row for row in self.scorecard["rows"] if row["model"] == "student"]

    def predictions(self, target: str) -> np.ndarray:
        """Read the class that a target's file predicts for each test image, int32 (n,)."""
        predicted: np.ndarray = np.load(self.folder / "predictions" / f"student-{target}.npy")
        return predicted

    def labels(self) -> np.ndarray:
        """Read the true class of each test image, int32 (n,)."""
        labels: np.ndarray = np.load(self.folder / "predictions" / "labels.npy")
        return labels

    def float_predictions(self, network: str) -> np.ndarray:
        """Return the classes that the float student or teacher predicts in PyTorch, (n,)."""
        return np.asarray(self.evaluation[network]["predictions"])


def read(measure: Path, evaluate: Path) -> Measured:
    """Read the measurements.

    Args:
        measure: The folder of measure's artefact.
        evaluate: The folder of evaluate's artefact.
    """
    scorecard = json.loads((measure / "scorecard.json").read_text(encoding="utf-8"))
    evaluation = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
    return Measured(measure, scorecard, evaluation)


def judge(gates: Sequence[GateSettings], measured: Measured) -> list[dict[str, Any]]:
    """Judge each gate on each target that it covers.

    A gate on one target that was not measured is undecided. A gate on several targets covers those that
    were measured, and is undecided only if none was.

    Args:
        gates: The profile's gates.
        measured: The measurements.

    Returns:
        The judgements, JSON-ready, in the order of gates and targets (keys: docs/reference/artefacts.md).
    """
    judgements = []
    for number, gate in enumerate(gates):
        covered = [row for row in measured.rows if gate.covers(row["target"])]
        present = [row for row in covered if row["top1"] is not None]
        judgements += [_judgement(number, gate, row, measured) for row in present or covered]
    return judgements


def verdict(gate: GateSettings, value: float, interval: Interval | None) -> Status:
    """Decide on which side of the gate's limit the interval, or the exact value, is.

    Returns:
        `passed` or `missed` if all of it is on one side, else `undecided`.
    """
    low, high = interval or (value, value)
    if METRICS[gate.metric].direction == "min":
        low, high, limit = -high, -low, -gate.limit
    else:
        limit = gate.limit
    if high <= limit:
        return "passed"
    return "missed" if low > limit else "undecided"


def _judgement(number: int, gate: GateSettings, row: Row, measured: Measured) -> dict[str, Any]:
    metric = METRICS[gate.metric]
    batch, threads = _combination(gate, metric, measured)
    if row["top1"] is None:
        figure = Figure(None, why=f"not measured: {row['why_not']}")
    else:
        figure = _figure(gate, metric, row, measured, batch, threads)
    status: Status = "undecided"
    if figure.value is not None:
        status = verdict(gate, figure.value, figure.interval)
    if status == "missed" and _disturbed(figure, gate.limit):
        status = "undecided"
        figure = replace(figure, why="the machine was disturbed, and its shortest sample keeps the limit")
    judgement = {
        "gate": number,
        "metric": gate.metric,
        "unit": metric.unit,
        "target": row["target"],
        "against": (gate.against or "student") if metric.compares else None,
        "batch": batch,
        "threads": threads,
        "direction": metric.direction,
        "limit": gate.limit,
        "value": None if figure.value is None else round(figure.value, 6),
        "interval": [round(end, 6) for end in figure.interval] if figure.interval else None,
        "status": status,
        "why": figure.why or None,
        "flags": list(figure.flags),
    }
    return {**judgement, "said": _sentence(judgement)}


def _disturbed(figure: Figure, limit: float) -> bool:
    """Return whether another process may have caused a latency beyond its limit.

    That is so if something disturbed the machine meanwhile and the shortest sample keeps the limit.
    """
    return bool(figure.flags) and figure.least is not None and figure.least <= limit


def _combination(gate: GateSettings, metric: Metric, measured: Measured) -> tuple[int | None, int | None]:
    if metric.percent is None:
        return None, None
    settings = measured.scorecard["settings"]
    return gate.batch or settings["batch_sizes"][0], gate.threads or settings["threads"][0]


def _figure(
    gate: GateSettings, metric: Metric, row: Row, measured: Measured, batch: int | None, threads: int | None
) -> Figure:
    if metric.percent is not None:
        return _latency(metric.percent, row, measured, batch, threads)
    if metric.compares:
        return _compared(gate, row, measured)
    if gate.metric == "slowdown":
        return _slowdown(row, measured)
    if gate.metric == "accuracy":
        return Figure(row["top1"], tuple(row["top1_ci"]))
    size = row["size_bytes" if gate.metric == "size_mb" else "peak_memory_bytes"]
    if not size:  # 0 stands for a system that does not report it
        return Figure(None, why="not measured on this system")
    return Figure(size / 1e6)


def _latency(percent: int, row: Row, measured: Measured, batch: int | None, threads: int | None) -> Figure:
    combination = (batch, threads)
    entry = next(
        (each for each in row["latency"] if (each["batch"], each["threads"]) == combination),
        None,
    )
    if entry is None:
        return Figure(None, why=f"batch {batch} was not measured: the engine does not take it")
    value, known_interval = entry[f"p{percent}_ms"], entry.get(f"p{percent}_ci_ms")
    flags = tuple(flag for flag in entry["flags"] if flag != "tail under-sampled")  # n shows that
    if percent == 50:
        return Figure(value, tuple(known_interval), flags=flags, least=entry["min_ms"])
    if value is None:
        return Figure(None, why=f"{entry['n']} samples are too few for p{percent}")
    raw = np.load(measured.folder / "samples" / f"student-{row['target']}-b{batch}-t{threads}.npy")
    interval = percentile_interval(raw * 1e-6, percent, tuple(known_interval) if known_interval else None)
    return Figure(value, interval, flags=flags, least=entry["min_ms"])


def _slowdown(row: Row, measured: Measured) -> Figure:
    """Compare the p50 with that of the same target in the earlier bundle, timed in turns; in per cent."""
    for comparison in measured.scorecard["comparisons"]:
        sides = comparison["first"], comparison["second"]
        if sides[0]["model"] == REFERENCE and all(side["target"] == row["target"] for side in sides):
            low, high = (100.0 * (ratio - 1.0) for ratio in comparison["ratio_ci"])
            flags = tuple(comparison.get("flags") or ())
            return Figure(100.0 * (comparison["ratio"] - 1.0), (low, high), flags=flags)
    return Figure(
        None, why="the bundle of measure.reference has no such target that runs on this machine at that batch"
    )


def _compared(gate: GateSettings, row: Row, measured: Measured) -> Figure:
    """Compare the predictions with those of the float student or teacher, image by image."""
    reference = measured.float_predictions(gate.against or "student")
    predicted = measured.predictions(row["target"])
    if gate.metric == "agreement":
        same = int((predicted == reference).sum())
        low, high = wilson_interval(same, len(predicted))
        return Figure(100.0 * same / len(predicted), (100.0 * low, 100.0 * high))
    labels = measured.labels()
    before, after = reference == labels, predicted == labels
    low, high = paired_interval(before, after)
    return Figure(100.0 * float(before.mean() - after.mean()), (100.0 * low, 100.0 * high))


def _sentence(judgement: Mapping[str, Any]) -> str:
    """Return the judgement in words.

    `openvino-int8: accuracy_drop against the student is 1.3 [0.4, 2.2] points; the limit is at most 1 points`
    """
    target, name, why = judgement["target"], judgement["metric"], judgement["why"]
    threads = judgement["threads"]
    if judgement["against"]:
        name += f" against the {judgement['against']}"
    if judgement["batch"]:
        name += f" at batch {judgement['batch']}, {threads} thread{'s' if threads != 1 else ''}"
    side = "at most" if judgement["direction"] == "max" else "at least"
    limit = f"{side} {judgement['limit']:g} {judgement['unit']}"
    if judgement["value"] is None:
        return f"{target}: {name} has no value: {why}; the limit is {limit}"
    interval = judgement["interval"]
    span = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    doubt = f" (measured while {', '.join(judgement['flags'])})" if judgement["flags"] else ""
    doubt += f": {why}" if why else ""
    return (
        f"{target}: {name} is {judgement['value']:.4g}{span} {judgement['unit']}; the limit is {limit}{doubt}"
    )
