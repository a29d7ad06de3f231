"""The contract between the engine and a stage.

A stage is a plain function `run(context)` in a module of its own. It does not use the store or the command
line. It reads its settings and the folders of its inputs, writes into an empty folder, reports its progress,
and returns its metrics. So a test or a notebook can call it directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

Metrics = dict[str, Any]
"""The metrics of a stage, for the manifest: JSON-ready names and values, units in the names."""


@dataclass(frozen=True)
class Conditional:
    """What a stage reads in addition, and what shapes its output in addition, for some settings.

    Attributes:
        condition: "module:function" of a light function. It takes the settings of the stage's own `reads`,
            and returns whether this applies.
        reads: Sections that are added to the stage's `reads`; not empty.
        libraries: Distributions that are added to the stage's `libraries`.
    """

    condition: str
    reads: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """The description of a stage for the engine, which reads it without importing the stage.

    Attributes:
        name: The verb that the user types.
        summary: One line for the help.
        module: The module with `run(context)`, imported only when the stage has to run. It may also have
            `check(settings)`, which is called before anything runs and raises a `UsageError` for invalid
            input.
        version: Increased when the stage's output changes for equal settings.
        inputs: The names of the stages whose artefacts it reads.
        reads: The profile's sections that it reads. It gets no others, and they are part of its key.
        data: Whether it reads the data set; then the data's fingerprint is part of its key.
        files: Dotted profile keys that are the path of a file whose content counts (a checkpoint).
        machine: "module:function" of a light function that returns, by name, the properties of this machine
            that the output depends on. It takes the settings (like `Context.settings`).
        libraries: Python distributions that shape the output. Their versions, without the local part
            (`+cu130`), are part of the key. A distribution that is not installed is recorded as such.
        patch_releases: Whether another patch release of them (2.14.0, 2.14.1) makes the artefact stale;
            False where making it may take hours.
        conditional: What it reads in addition for some settings. For all others it does not get that, and
            that is not part of the key.
        reads_history: Whether it gets the record of the run so far (the report).
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
    reads_history: bool = False


class Progress(Protocol):
    """The interface for reporting progress. Calls are cheap: the receiver drops most of them."""

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Report that `done` of `total` units of work are done.

        The receiver computes the rate and the remaining time from it.

        Args:
            done: How much is done.
            total: How much there is.
            unit: The unit of both; for "%" only the share is shown.
            figures: Values to show beside it (`epoch=3`, `val_top1=97.2`). A stage that can estimate the
                remaining seconds better than the rate can gives them as `eta_s`, "" while they are unknown.
        """

    def note(self, text: str) -> None:
        """Report one line for the log, such as a choice that was made or a target that cannot be built."""


class Silent:
    """A progress reporter that prints nothing, for tests and notebooks."""

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class StageRecord:
    """The result of a stage in the run so far.

    Attributes:
        name: The stage's name.
        status: `hit`, `ran`, `stale`, `failed`, `not_built` or `skipped`.
        seconds: How long making the artefact took, in this or an earlier run.
        key: The artefact's key.
        metrics: The stage's metrics.
    """

    name: str
    status: str
    seconds: float
    key: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The argument of a stage's `run`.

    Attributes:
        settings: The profile's sections that the stage declares in `reads`, as attributes
            (`settings.train.epochs`). The others are left out, so that nothing is read that is not part of
            the key.
        inputs: By stage name, the folder of that stage's artefact, read-only.
        output: An empty folder; its content when `run` returns is the artefact.
        work: A folder for checkpoints that survives a kill; it is deleted when the stage is done.
        progress: The progress reporter.
        history: The run so far (only for a stage that `reads_history`).
    """

    settings: SimpleNamespace
    inputs: Mapping[str, Path]
    output: Path
    work: Path
    progress: Progress = field(default_factory=Silent)
    history: tuple[StageRecord, ...] = ()


Run = Callable[[Context], Metrics]
