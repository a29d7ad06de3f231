"""Settings of the gates. Light: imports only pydantic."""

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
    """A metric that a gate can limit.

    Attributes:
        direction: Whether it takes `min` or `max`.
        unit: The unit of limit and value.
        low: The lowest limit that makes sense.
        high: The highest limit that makes sense.
        compares: Whether it is a comparison with the float student or teacher.
        percent: The percentile of a latency; None for other metrics.
    """

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
"""The fewest samples that support a percentile (docs/concepts/measuring.md); measuring takes at least 10."""


class GateSettings(Settings):
    """A limit for one target or several. The metric requires either `max` or `min`."""

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
    ] = setting(..., "the limited metric, in the unit of its name; accuracy and agreement in per cent")
    max: float | None = setting(
        None,
        "largest accuracy_drop (points), latency (ms), slowdown (per cent of the p50 in measure.reference), "
        "size or memory (MB of 10^6 bytes)",
    )
    min: float | None = setting(None, "least accuracy or agreement", unit="%")
    target: str = setting("*", "a target's name, or a shell pattern for several", min_length=1)
    against: Literal["student", "teacher"] | None = setting(
        None, "float network that accuracy_drop and agreement compare with; null: the student"
    )
    batch: int | None = setting(
        None, "batch size of a latency; null: the first of measure.batch_sizes", unit="images", ge=1
    )
    threads: int | None = setting(
        None, "threads of a latency; null: the first of measure.threads", unit="threads", ge=1
    )

    @model_validator(mode="after")
    def _limit_fits_the_metric(self) -> GateSettings:
        metric = METRICS[self.metric]
        other = "min" if metric.direction == "max" else "max"
        limit = getattr(self, metric.direction)
        if getattr(self, other) is not None:
            raise ValueError(f"{self.metric} takes {metric.direction}, not {other}")
        if limit is None:
            raise ValueError(f"{self.metric} has no limit: set {metric.direction}")
        if not metric.low <= limit <= metric.high:
            raise ValueError(
                f"{metric.direction} of {self.metric} must be from {metric.low:g} to {metric.high:g} "
                f"{metric.unit}, found {limit:g}"
            )
        if self.against and not metric.compares:
            raise ValueError(f"{self.metric} does not take against: leave it out")
        for name in ("batch", "threads"):
            if getattr(self, name) is not None and metric.percent is None:
                raise ValueError(f"{self.metric} does not take {name}: leave it out")
        return self

    @property
    def limit(self) -> float:
        """The value of `max` or `min`."""
        return float(getattr(self, METRICS[self.metric].direction))

    def covers(self, target: str) -> bool:
        """Return whether the gate applies to a target."""
        return fnmatchcase(target, self.target)


def broken_rules(
    gates: Sequence[GateSettings], targets: Sequence[str], measure: MeasureSettings
) -> list[str]:
    """List the gates that contradict the rest of the profile.

    Returns:
        A sentence for each, which begins with the key that is invalid.
    """
    broken = []
    for number, gate in enumerate(gates):
        at = f"gates.{number}"
        if not any(gate.covers(target) for target in targets):
            near = get_close_matches(gate.target, targets, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            broken.append(f"{at}.target: {gate.target} is not among the targets: {', '.join(targets)}{hint}")
        if gate.batch is not None and gate.batch not in measure.batch_sizes:
            broken.append(f"{at}.batch: {gate.batch} is not in measure.batch_sizes {measure.batch_sizes}")
        if gate.threads is not None and gate.threads not in measure.threads:
            broken.append(f"{at}.threads: {gate.threads} is not in measure.threads {measure.threads}")
        if gate.metric == "slowdown" and not measure.reference:
            broken.append(f"{at}.metric: slowdown compares with an earlier bundle: set measure.reference")
        fewest = FEWEST_SAMPLES.get(METRICS[gate.metric].percent or 0, 0)
        if measure.min_samples < fewest:
            broken.append(
                f"{at}.metric: {gate.metric} needs {fewest} samples, but measure.min_samples "
                f"is {measure.min_samples}"
            )
        earlier = _same_limit(gate, gates[:number], measure)
        if earlier is not None:
            broken.append(f"{at}: it limits the same as gates.{earlier}")
    return broken


def _same_limit(gate: GateSettings, earlier: Sequence[GateSettings], measure: MeasureSettings) -> int | None:
    """Return the number of an earlier gate on the same value."""

    def subject(other: GateSettings) -> tuple[object, ...]:
        return (
            other.metric,
            other.target,
            other.against or "student",
            other.batch or measure.batch_sizes[0],
            other.threads or measure.threads[0],
        )

    return next((number for number, other in enumerate(earlier) if subject(other) == subject(gate)), None)
