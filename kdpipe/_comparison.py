"""A comparison of methods over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe import _frames, _html
from kdpipe._scorecard import interval
from pipeline.console.tables import figure, table

if TYPE_CHECKING:
    import pandas

_HEADER = ("method", "seeds", "top-1 %", "gain [95 %]", "p (Holm)", "verdict")


@dataclass(frozen=True)
class ComparedMethod:
    """What a method gained over the reference, over all seeds.

    Attributes:
        label: The method, as it was given.
        seeds: The seeds of its finished runs.
        failed: How many of its runs failed.
        top1: Mean accuracy over the seeds, of the epoch with the best validation accuracy, in per cent.
        top1_sd: Standard deviation over the seeds, in points; None with one seed.
        gain_points: Mean gain over the reference with the same seed, in points; None for the reference.
        gain_ci: 95 % interval of the gain.
        p_holm: p-value of the gain, adjusted for the number of methods.
        verdict: `better`, `worse` or `cannot tell`; None for the reference.
        agreement_with_teacher: Images with the teacher's prediction, in per cent.
        seconds_per_epoch: The time of a training epoch.
        details: Every field, as in `comparison.json`.
    """

    label: str
    seeds: tuple[int, ...]
    failed: int
    top1: float | None
    top1_sd: float | None
    gain_points: float | None
    gain_ci: tuple[float, float] | None
    p_holm: float | None
    verdict: str | None
    agreement_with_teacher: float | None
    seconds_per_epoch: float | None
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_document(cls, method: Mapping[str, Any]) -> ComparedMethod:
        """Return an entry of `methods` in `comparison.json`."""
        best = method["best"]
        return cls(
            label=method["label"],
            seeds=tuple(method["seeds"]),
            failed=method["failed"],
            top1=best["top1"],
            top1_sd=best["top1_sd"],
            gain_points=best["gain_points"],
            gain_ci=interval(best["gain_ci"]),
            p_holm=best["p_holm"],
            verdict=best["verdict"],
            agreement_with_teacher=method["agreement_with_teacher"],
            seconds_per_epoch=method["seconds_per_epoch"],
            details=dict(method),
        )


@dataclass(frozen=True)
class ComparedRun:
    """One training of the student.

    Attributes:
        label: The method, as it was given.
        seed: The seed.
        status: `hit`, `ran` or `failed`.
        path: The folder of its artefact, with the weights; None if it failed.
        top1: Accuracy on the split, in per cent.
        why_failed: Why it failed.
        details: Every field, as in the JSON document.
    """

    label: str
    seed: int
    status: str
    path: Path | None
    top1: float | None
    why_failed: str | None
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_document(cls, run: Mapping[str, Any]) -> ComparedRun:
        """Return an entry of `runs` in the JSON document."""
        return cls(
            label=run["label"],
            seed=run["seed"],
            status=run["status"],
            path=None if run["path"] is None else Path(run["path"]),
            top1=run["top1"],
            why_failed=run["failed"],
            details=dict(run),
        )


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `kdpipe.compare`. Iterate over its methods, or look a method up by its label.

    Attributes:
        methods: A row for each method, the best first.
        runs: Every run.
        split: The images that were judged, `test` or `validation`.
        reference: The label that the others are compared with.
        answer: Whether distillation was worth it, in a sentence.
        unfit: By label, why a method of `all` does not fit the networks.
        path: The artefact's folder.
        document: Every field, as in the JSON document.
    """

    methods: tuple[ComparedMethod, ...]
    runs: tuple[ComparedRun, ...]
    split: str
    reference: str
    answer: str
    unfit: Mapping[str, str]
    path: Path
    document: Mapping[str, Any]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Comparison:
        """Return the comparison of a JSON document."""
        return cls(
            methods=tuple(ComparedMethod.from_document(method) for method in document["methods"]),
            runs=tuple(ComparedRun.from_document(run) for run in document["runs"]),
            split=document["split"],
            reference=document["reference"],
            answer=document["answer"]["text"],
            unfit={entry["label"]: entry["why"] for entry in document["unfit"]},
            path=Path(document["path"]),
            document=document,
        )

    @property
    def page(self) -> Path:
        """The page with table and charts, a self-contained HTML file."""
        return self.path / "comparison.html"

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with a row for each method.

        Raises:
            UsageError: pandas is not installed.
        """
        columns = [name for name in ComparedMethod.__dataclass_fields__ if name != "details"]
        return _frames.frame([{name: getattr(method, name) for name in columns} for method in self])

    def __iter__(self) -> Iterator[ComparedMethod]:
        """Iterate over the methods, the best first."""
        return iter(self.methods)

    def __len__(self) -> int:
        """Return the number of methods."""
        return len(self.methods)

    def __getitem__(self, label: str) -> ComparedMethod:
        """Return a method by its label.

        Raises:
            KeyError: The comparison has no such method.
        """
        for method in self.methods:
            if method.label == label:
                return method
        raise KeyError(label)

    def __repr__(self) -> str:
        """Return the comparison as a text table."""
        return f"{table(_HEADER, self._cells(), 'lrrrrl')}\n\n{self.answer}"

    def _repr_html_(self) -> str:
        return _html.table(_HEADER, self._cells()) + _html.paragraph(self.answer)

    def _cells(self) -> list[list[str]]:
        return [
            [
                method.label,
                str(len(method.seeds)) + (f" ({method.failed} failed)" if method.failed else ""),
                figure(method.top1) + ("" if method.top1_sd is None else f" ({method.top1_sd:.2f})"),
                "-" if method.gain_points is None else f"{method.gain_points:+.2f} {_signed(method.gain_ci)}",
                "-" if method.p_holm is None else f"{method.p_holm:.2g}",
                method.verdict or "reference",
            ]
            for method in self.methods
        ]


def _signed(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"
