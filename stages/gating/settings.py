"""What a profile may say of gates. Light: imports pydantic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import model_validator

from stages.fields import Settings, setting
from stages.measuring.settings import MeasureSettings


@dataclass(frozen=True)
class Metric:
    """direction: which limit it takes. low, high: the limits that make sense. compares: it is taken
    against the student or the teacher. percent: of a latency, which percentile it is."""

    direction: Literal["min", "max"]
    unit: str
    low: float
    high: float = float("inf")
    compares: bool = False
    percent: int | None = None


METRICS: dict[str, Metric] = {
    "accuracy": Metric("min", "%", 0.0, 100.0),
    "accuracy_drop": Metric("max", "points", -100.0, 100.0, compares=True),
    "agreement": Metric("min", "%", 0.0, 100.0, compares=True),
    "latency_p50_ms": Metric("max", "ms", 0.0, percent=50),
    "latency_p90_ms": Metric("max", "ms", 0.0, percent=90),
    "latency_p99_ms": Metric("max", "ms", 0.0, percent=99),
    "slowdown": Metric("max", "%", -100.0),
    "size_mb": Metric("max", "MB", 0.0),
    "peak_memory_mb": Metric("max", "MB", 0.0),
}

FEWEST_SAMPLES = {50: 10, 90: 44, 99: 459}
"""Fewest samples that carry a percentile (docs/concepts/measuring.md); measuring takes at least 10."""


class GateSettings(Settings):
    """A limit, for one target or several. `max` or `min`, whichever the metric takes, is required."""

    metric: Literal[
        "accuracy",
        "accuracy_drop",
        "agreement",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p99_ms",
        "slowdown",
        "size_mb",
        "peak_memory_mb",
    ] = setting(..., "what is limited, in the unit of its name; accuracy and agreement in per cent")
    max: float | None = setting(
        None,
        "largest accuracy_drop (points), latency (ms), slowdown (per cent of the p50 in measure.reference), "
        "size or memory (MB of 10^6 bytes)",
    )
    min: float | None = setting(None, "least accuracy or agreement", unit="%")
    target: str = setting("*", "a target's name, or a shell pattern for several", min_length=1)
    against: Literal["student", "teacher"] | None = setting(
        None, "whom accuracy_drop and agreement compare with, in float; null: the student"
    )
    batch: int | None = setting(
        None, "of a latency; null: the first of measure.batch_sizes", unit="images", ge=1
    )
    threads: int | None = setting(
        None, "of a latency; null: the first of measure.threads", unit="threads", ge=1
    )

    @model_validator(mode="after")
    def _limited_as_the_metric_takes_it(self) -> GateSettings:
        metric = METRICS[self.metric]
        other = "min" if metric.direction == "max" else "max"
        limit = getattr(self, metric.direction)
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is no limit of {self.metric}, which takes {metric.direction}")
        if limit is None:
            raise ValueError(f"{self.metric} has no limit: say {metric.direction}")
        if not metric.low <= limit <= metric.high:
            raise ValueError(
                f"{metric.direction} of {self.metric} must lie in {metric.low:g} to {metric.high:g} "
                f"{metric.unit}, found {limit:g}"
            )
        if self.against and not metric.compares:
            raise ValueError(f"against means nothing to {self.metric}: leave it out")
        for name in ("batch", "threads"):
            if getattr(self, name) is not None and metric.percent is None:
                raise ValueError(f"{name} means nothing to {self.metric}: leave it out")
        return self

    @property
    def limit(self) -> float:
        return float(getattr(self, METRICS[self.metric].direction))

    def covers(self, target: str) -> bool:
        return fnmatchcase(target, self.target)


def broken_rules(
    gates: Sequence[GateSettings], targets: Sequence[str], measure: MeasureSettings
) -> list[str]:
    """What the rest of the profile makes impossible, a sentence each that begins with the key to blame."""
    broken = []
    for number, gate in enumerate(gates):
        at = f"gates.{number}"
        if not any(gate.covers(target) for target in targets):
            near = get_close_matches(gate.target, targets, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            broken.append(
                f"{at}.target: {gate.target} is none of the targets, which are {', '.join(targets)}{hint}"
            )
        if gate.batch is not None and gate.batch not in measure.batch_sizes:
            broken.append(f"{at}.batch: {gate.batch} is not in measure.batch_sizes {measure.batch_sizes}")
        if gate.threads is not None and gate.threads not in measure.threads:
            broken.append(f"{at}.threads: {gate.threads} is not in measure.threads {measure.threads}")
        if gate.metric == "slowdown" and not measure.reference:
            broken.append(f"{at}.metric: slowdown is against an earlier bundle: name it in measure.reference")
        fewest = FEWEST_SAMPLES.get(METRICS[gate.metric].percent or 0, 0)
        if measure.min_samples < fewest:
            broken.append(
                f"{at}.metric: {gate.metric} needs {fewest} samples, but measure.min_samples "
                f"only asks for {measure.min_samples}"
            )
        same = _same_as(gate, gates[:number], measure)
        if same is not None:
            broken.append(f"{at}: it limits the same as gates.{same}")
    return broken


def _same_as(gate: GateSettings, earlier: Sequence[GateSettings], measure: MeasureSettings) -> int | None:
    def meant(one: GateSettings) -> tuple[object, ...]:
        return (
            one.metric,
            one.target,
            one.against or "student",
            one.batch or measure.batch_sizes[0],
            one.threads or measure.threads[0],
        )

    return next((number for number, one in enumerate(earlier) if meant(one) == meant(gate)), None)
