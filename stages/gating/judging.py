"""Judges gates on what was measured: passed, missed beyond noise, or undecided."""

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
    """A value with its 95 % interval; without one it is exact. Without a value, `why` tells why.

    flags: what makes a latency doubtful (docs/concepts/measuring.md). least: its shortest sample.
    """

    value: float | None
    interval: Interval | None = None
    why: str = ""
    flags: tuple[str, ...] = ()
    least: float | None = None


@dataclass(frozen=True)
class Measured:
    """What there is to judge on: the folder of measure's artefact, its scorecard, evaluate's metrics."""

    folder: Path
    scorecard: Mapping[str, Any]
    judged: Mapping[str, Any]

    @property
    def rows(self) -> list[Row]:
        """The student's targets."""
        return [row for row in self.scorecard["rows"] if row["model"] == "student"]

    def predictions(self, target: str) -> np.ndarray:
        """The class that a target's file gave to each test image, int32 (n,)."""
        predicted: np.ndarray = np.load(self.folder / "predictions" / f"student-{target}.npy")
        return predicted

    def labels(self) -> np.ndarray:
        labels: np.ndarray = np.load(self.folder / "predictions" / "labels.npy")
        return labels

    def of_float(self, network: str) -> np.ndarray:
        """The classes by the float student or teacher, in PyTorch (n,)."""
        return np.asarray(self.judged[network]["predictions"])


def read(measure: Path, evaluate: Path) -> Measured:
    """From the folders of the two artefacts."""
    scorecard = json.loads((measure / "scorecard.json").read_text(encoding="utf-8"))
    judged = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
    return Measured(measure, scorecard, judged)


def judge(gates: Sequence[GateSettings], measured: Measured) -> list[dict[str, Any]]:
    """A judgement for each gate and target it covers, in their order (keys: docs/reference/artefacts.md).

    A gate on one target that was not measured is undecided; one on several covers those that were
    measured, and is undecided only if none was.
    """
    found = []
    for number, gate in enumerate(gates):
        covered = [row for row in measured.rows if gate.covers(row["target"])]
        present = [row for row in covered if row["top1"] is not None]
        found += [_judgement(number, gate, row, measured) for row in present or covered]
    return found


def verdict(gate: GateSettings, value: float, interval: Interval | None) -> Status:
    """Whether the interval, or the exact value, lies on one side of the limit, and on which, or on both."""
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
    """Whether a latency beyond its limit may be the neighbours' work: something disturbed the machine
    meanwhile, and it was not slow throughout."""
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
    if not size:  # 0 is what a system that does not tell is taken down with
        return Figure(None, why="not measured on this system")
    return Figure(size / 1e6)


def _latency(percent: int, row: Row, measured: Measured, batch: int | None, threads: int | None) -> Figure:
    entry = next((one for one in row["latency"] if (one["batch"], one["threads"]) == (batch, threads)), None)
    if entry is None:
        return Figure(None, why=f"batch {batch} was not measured: the engine does not take it")
    value, written = entry[f"p{percent}_ms"], entry.get(f"p{percent}_ci_ms")
    flags = tuple(flag for flag in entry["flags"] if flag != "tail under-sampled")  # the number tells that
    if percent == 50:
        return Figure(value, tuple(written), flags=flags, least=entry["min_ms"])
    if value is None:
        return Figure(None, why=f"{entry['n']} samples are too few for p{percent}")
    raw = np.load(measured.folder / "samples" / f"student-{row['target']}-b{batch}-t{threads}.npy")
    interval = percentile_interval(raw * 1e-6, percent, tuple(written) if written else None)
    return Figure(value, interval, flags=flags, least=entry["min_ms"])


def _slowdown(row: Row, measured: Measured) -> Figure:
    """By how many per cent the p50 is above that of the same target in the earlier bundle, timed in turns."""
    for one in measured.scorecard["comparisons"]:
        sides = one["first"], one["second"]
        if sides[0]["model"] == REFERENCE and all(side["target"] == row["target"] for side in sides):
            low, high = one["ratio_ci"]
            flags = tuple(one.get("flags") or ())
            return Figure(
                100.0 * (one["ratio"] - 1.0), (100.0 * (low - 1.0), 100.0 * (high - 1.0)), flags=flags
            )
    return Figure(
        None, why="the bundle that measure.reference names has no such target that runs here at that batch"
    )


def _compared(gate: GateSettings, row: Row, measured: Measured) -> Figure:
    """Against the same images' classes by the float student or the teacher."""
    reference = measured.of_float(gate.against or "student")
    predicted = measured.predictions(row["target"])
    if gate.metric == "agreement":
        same = int((predicted == reference).sum())
        low, high = wilson_interval(same, len(predicted))
        return Figure(100.0 * same / len(predicted), (100.0 * low, 100.0 * high))
    labels = measured.labels()
    before, after = reference == labels, predicted == labels
    low, high = paired_interval(before, after)
    return Figure(100.0 * float(before.mean() - after.mean()), (100.0 * low, 100.0 * high))


def _sentence(one: Mapping[str, Any]) -> str:
    """`onnxruntime-int8: accuracy_drop against the student is 1.3 points [0.4, 2.2], at most 1 allowed`."""
    name = one["metric"]
    if one["against"]:
        name += f" against the {one['against']}"
    if one["batch"]:
        name += f" at batch {one['batch']}, {one['threads']} thread{'s' if one['threads'] != 1 else ''}"
    allowed = f"{'at most' if one['direction'] == 'max' else 'at least'} {one['limit']:g} {one['unit']}"
    if one["value"] is None:
        return f"{one['target']}: {name} ({allowed}) is not known: {one['why']}"
    span = f" [{one['interval'][0]:.4g}, {one['interval'][1]:.4g}]" if one["interval"] else ""
    doubt = f" (measured while {', '.join(one['flags'])})" if one["flags"] else ""
    doubt += f": {one['why']}" if one["why"] else ""
    return f"{one['target']}: {name} is {one['value']:.4g}{span} {one['unit']}, {allowed} is asked for{doubt}"
