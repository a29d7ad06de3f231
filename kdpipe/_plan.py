"""A plan: which stages are cached, and why the others have to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdpipe import _html
from kdpipe._stages import Reason, reasons_from, reasons_in_short
from pipeline.console.tables import duration, table

_HEADER = ("stage", "status", "why", "estimate")


@dataclass(frozen=True)
class PlannedStage:
    """The decision on one stage.

    Attributes:
        name: The stage.
        status: `hit` (cached) or `stale` (it has to run).
        key: The key of its artefact; None while an input has to run first.
        digest: The content digest of the cached artefact.
        path: The folder of the cached artefact.
        seconds_estimate: What it took the last time; None if it never ran.
        reasons: Why it has to run.
    """

    name: str
    status: Literal["hit", "stale"]
    key: str | None
    digest: str | None
    path: Path | None
    seconds_estimate: float | None
    reasons: tuple[Reason, ...]

    @classmethod
    def from_document(cls, entry: Mapping[str, Any]) -> PlannedStage:
        """Return the stage of an entry of the JSON document."""
        return cls(
            name=entry["name"],
            status=entry["status"],
            key=entry["key"],
            digest=entry["digest"],
            path=None if entry["path"] is None else Path(entry["path"]),
            seconds_estimate=entry["seconds_estimate"],
            reasons=reasons_from(entry["reasons"]),
        )


@dataclass(frozen=True, repr=False)
class Plan:
    """The decisions on all stages of a profile, in order. Iterate over it, or look a stage up by its name.

    Attributes:
        profile: The profile's file.
        store: The folder of the artefacts.
        stages: The stages.
    """

    profile: Path
    store: Path
    stages: tuple[PlannedStage, ...]

    @classmethod
    def from_documents(cls, profile: Path, store: Path, entries: Sequence[Mapping[str, Any]]) -> Plan:
        """Return the plan of the entries of a JSON document."""
        return cls(profile, store, tuple(PlannedStage.from_document(entry) for entry in entries))

    @property
    def stale(self) -> tuple[PlannedStage, ...]:
        """The stages that have to run."""
        return tuple(stage for stage in self.stages if stage.status == "stale")

    @property
    def is_cached(self) -> bool:
        """Whether no stage has to run."""
        return not self.stale

    def __iter__(self) -> Iterator[PlannedStage]:
        """Iterate over the stages in order."""
        return iter(self.stages)

    def __len__(self) -> int:
        """Return the number of stages."""
        return len(self.stages)

    def __getitem__(self, name: str) -> PlannedStage:
        """Return a stage by its name.

        Raises:
            KeyError: The plan has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def __repr__(self) -> str:
        """Return the plan as a text table."""
        return f"{table(_HEADER, self._cells(), 'lllr')}\n\n{self._summary()}"

    def _repr_html_(self) -> str:
        return _html.table(_HEADER, self._cells()) + _html.paragraph(self._summary())

    def _cells(self) -> list[list[str]]:
        return [
            [
                stage.name,
                "cached" if stage.status == "hit" else "stale",
                reasons_in_short(stage.reasons),
                ""
                if stage.status == "hit" or stage.seconds_estimate is None
                else duration(stage.seconds_estimate),
            ]
            for stage in self.stages
        ]

    def _summary(self) -> str:
        if self.is_cached:
            return "everything is cached"
        return f"{len(self.stale)} of {len(self)} stages have to run"
