"""The contract between the engine and a stage.

A stage is a plain function `run(context)` in a module of its own. It knows neither the store nor
the command line: it reads its settings and the folders of its inputs, writes into an empty
folder, tells its progress, and returns its metrics. So a test or a notebook calls it directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

Metrics = dict[str, Any]
"""What a stage returns: JSON-ready names and figures, units in the names. Goes to the manifest."""


@dataclass(frozen=True)
class Conditional:
    """What a stage reads, and what shapes its output, only for some settings.

    condition: "module:function" of a light function that is given the settings of the stage's own
        `reads`, and returns whether this counts.
    reads, libraries: as in Stage, added to the stage's. `reads` is not empty.
    """

    condition: str
    reads: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What the engine must know of a stage, light enough to read without importing the stage.

    name: the verb that the user types.
    summary: one line for the help.
    module: where `run(context)` lies; imported only when the stage has to run. It may also hold
        `check(settings)`, called before anything runs, that raises a `UsageError` for wrong input.
    version: goes up when the stage's output changes for equal settings.
    inputs: names of the stages whose artefacts it reads.
    reads: the profile's sections it reads: all that it is given, and part of its key.
    data: whether it reads the data set; then the data's fingerprint is part of its key.
    files: dotted profile keys that name a file whose content counts (a checkpoint).
    machine: "module:function" of a light function that returns what of this machine the output
        depends on, by name; it is given the settings (as in `Context.settings`).
    libraries: Python distributions that shape the output; their versions, without the local part
        (`+cu130`), are part of the key. One that is not installed counts as such.
    patch_releases: whether another patch release of them (2.14.0, 2.14.1) makes the artefact stale;
        off where making it may take hours.
    conditional: what it reads besides for some settings; for all others it is neither given that nor is
        it part of the key.
    tells_history: the stage is given the record of the run so far (the report).
    """

    name: str
    summary: str
    module: str
    version: int
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    data: bool = False
    files: tuple[str, ...] = ()
    machine: str | None = None
    libraries: tuple[str, ...] = ()
    patch_releases: bool = True
    conditional: Conditional | None = None
    tells_history: bool = False


class Progress(Protocol):
    """How a stage tells what it is doing. Cheap to call: calls are thinned by the receiver."""

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """`done` of `total` units of work; the receiver derives rate and ETA. `figures` are shown
        beside it (`epoch=3`, `val_top1=97.2`). A stage that knows the time to go better than the rate
        tells it as `eta_s`, "" while nobody can tell. In the unit "%" `done` is a share alone."""

    def note(self, text: str) -> None:
        """One line worth keeping in a log (a choice made, a target that cannot be built)."""


class Silent:
    """A progress reporter that says nothing, for tests and notebooks."""

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class StageRecord:
    """What happened to a stage in the run so far: `status` is one of design.md's words."""

    name: str
    status: str
    seconds: float
    key: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """All that a stage is given.

    settings: the profile's sections that the stage declares in `reads`, as attributes
        (`settings.train.epochs`); others are not there, so that nothing unkeyed is ever read.
    inputs: by stage name, the folder of that stage's artefact, read-only.
    output: an empty folder; what lies there when `run` returns is the artefact.
    work: a folder that survives a kill, for checkpoints; it is deleted when the stage is done.
    progress: where to tell the progress.
    history: the run so far (only for a stage that `tells_history`).
    """

    settings: SimpleNamespace
    inputs: Mapping[str, Path]
    output: Path
    work: Path
    progress: Progress = field(default_factory=Silent)
    history: tuple[StageRecord, ...] = ()


Run = Callable[[Context], Metrics]
