"""The scorecard: what was measured of every target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kdpipe import _frames, _html
from pipeline.console.tables import figure, size, table, with_interval

if TYPE_CHECKING:
    import pandas

_HEADER = ("model", "target", "top-1 % [95 %]", "agreement %", "p50 ms [95 %]", "p99 ms", "speed-up", "size")


@dataclass(frozen=True)
class Latency:
    """The latency of one target at one batch size and number of threads.

    Attributes:
        batch: Images in a batch.
        threads: Threads of the runtime.
        n: Samples.
        p50_ms: The median, in milliseconds.
        p90_ms: The 90th percentile; None if there are too few samples.
        p99_ms: The 99th percentile; None if there are too few samples.
        p50_ci_ms: 95 % interval of the median.
        details: Every field, as in `scorecard.json`.
    """

    batch: int
    threads: int
    n: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    p50_ci_ms: tuple[float, float] | None
    details: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ScorecardRow:
    """What was measured of one target.

    Attributes:
        model: `teacher` (the baseline) or `student`.
        target: Runtime and precision, such as `onnxruntime-int8`.
        runtime: What executes it.
        precision: The number format.
        built: Whether it was built on this machine.
        why_not: Why it was not built or not measured.
        top1: Accuracy on the test images, in per cent; None if it was not measured.
        top1_ci: 95 % interval of `top1`.
        agreement: Images with the teacher's prediction, in per cent.
        latency: One entry for each batch size and number of threads.
        throughput_ips: Images per second.
        size_bytes: The size of the files that ship.
        peak_memory_bytes: The peak memory of the process that ran it.
        sha256: The digest of the files that ship.
        speedup: p50 of the teacher's row over that of this row, at the first batch size.
        flags: What makes the latency doubtful.
        details: Every field, as in `scorecard.json`.
    """

    model: Literal["teacher", "student"]
    target: str
    runtime: str
    precision: str
    built: bool
    why_not: str | None
    top1: float | None
    top1_ci: tuple[float, float] | None
    agreement: float | None
    latency: tuple[Latency, ...]
    throughput_ips: float | None
    size_bytes: int | None
    peak_memory_bytes: int | None
    sha256: str | None
    speedup: float | None
    flags: tuple[str, ...]
    details: Mapping[str, Any] = field(repr=False)

    @property
    def p50_ms(self) -> float | None:
        """The median latency at the first batch size and number of threads, in milliseconds."""
        return self.latency[0].p50_ms if self.latency else None

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile of the latency at the first batch size and number of threads."""
        return self.latency[0].p99_ms if self.latency else None

    @classmethod
    def from_document(cls, row: Mapping[str, Any]) -> ScorecardRow:
        """Return a row of `scorecard.json`."""
        return cls(
            model=row["model"],
            target=row["target"],
            runtime=row["runtime"],
            precision=row["precision"],
            built=row["built"],
            why_not=row["why_not"],
            top1=row["top1"],
            top1_ci=interval(row["top1_ci"]),
            agreement=row["agreement"],
            latency=tuple(
                Latency(
                    batch=entry["batch"],
                    threads=entry["threads"],
                    n=entry["n"],
                    p50_ms=entry["p50_ms"],
                    p90_ms=entry["p90_ms"],
                    p99_ms=entry["p99_ms"],
                    p50_ci_ms=interval(entry["p50_ci_ms"]),
                    details=dict(entry),
                )
                for entry in row["latency"]
            ),
            throughput_ips=row["throughput_ips"],
            size_bytes=row["size_bytes"],
            peak_memory_bytes=row["peak_memory_bytes"],
            sha256=row["sha256"],
            speedup=row.get("speedup"),
            flags=tuple(row.get("flags") or ()),
            details=dict(row),
        )


@dataclass(frozen=True, repr=False)
class Scorecard:
    """The rows of all targets, the teacher's baseline first. Iterate over it, or look up a target by name.

    Attributes:
        rows: The rows.
        document: The content of `scorecard.json`.
    """

    rows: tuple[ScorecardRow, ...]
    document: Mapping[str, Any]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Scorecard:
        """Return the content of `scorecard.json`."""
        return cls(tuple(ScorecardRow.from_document(row) for row in document["rows"]), document)

    @property
    def baseline(self) -> ScorecardRow:
        """The teacher's row."""
        return next(row for row in self.rows if row.model == "teacher")

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with a row for each target.

        The columns are the fields of a row without `latency` and `details`, and the latency at the first
        batch size and number of threads as `batch`, `threads`, `p50_ms`, `p90_ms` and `p99_ms`.

        Raises:
            UsageError: pandas is not installed.
        """
        return _frames.frame([_flat(row) for row in self.rows])

    def __iter__(self) -> Iterator[ScorecardRow]:
        """Iterate over the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, target: str) -> ScorecardRow:
        """Return the student's row of a target.

        Raises:
            KeyError: The scorecard has no such target.
        """
        for row in self.rows:
            if row.model == "student" and row.target == target:
                return row
        raise KeyError(target)

    def __repr__(self) -> str:
        """Return the scorecard as a text table."""
        return table(_HEADER, self._cells(), "lllrlrrr")

    def _repr_html_(self) -> str:
        return _html.table(_HEADER, self._cells())

    def _cells(self) -> list[list[str]]:
        return [
            [
                row.model,
                row.target,
                with_interval(row.top1, row.top1_ci) if row.top1 is not None else f"- ({row.why_not})",
                figure(row.agreement),
                with_interval(row.p50_ms, row.latency[0].p50_ci_ms if row.latency else None, 3),
                figure(row.p99_ms, 3),
                "-" if row.speedup is None else f"{row.speedup:.2f}x",
                "-" if row.size_bytes is None else size(row.size_bytes),
            ]
            for row in self.rows
        ]


def interval(ends: Any) -> tuple[float, float] | None:
    """Return the two ends of an interval of a JSON document."""
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _flat(row: ScorecardRow) -> dict[str, Any]:
    first = row.latency[0] if row.latency else None
    fields = {name: getattr(row, name) for name in ScorecardRow.__dataclass_fields__}
    del fields["latency"], fields["details"]
    latency = {
        name: getattr(first, name, None) for name in ("batch", "threads", "p50_ms", "p90_ms", "p99_ms")
    }
    return {**fields, **latency}
