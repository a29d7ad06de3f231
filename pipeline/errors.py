"""The errors of kdpipe, each in four parts, and their exit codes.

Every error that a user can meet is a `KdpipeError`: what failed, where, why, and how to fix
it. The command line prints these four parts and exits with the class's code; anything else that
escapes is a defect of kdpipe and its traceback goes to a log file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

EXIT_DONE = 0
EXIT_STAGE_FAILED = 1
EXIT_USAGE = 2
EXIT_GATE_MISSED = 3
EXIT_MACHINE_CANNOT = 4
EXIT_STALE = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class KdpipeError(Exception):
    """An error with a remedy.

    Attributes:
        exit_code: The exit code of the command line.
        what: What failed, one sentence.
        where: file:line:column, the stage or the artefact.
        why: The value found and the value expected.
        hint: How to fix it; a command to paste if there is one.
    """

    exit_code: ClassVar[int] = EXIT_STAGE_FAILED
    run: Any = None
    """The `kdpipe.Run` up to the error, if `kdpipe.run` raised it."""
    comparison: Any = None
    """The `kdpipe.Comparison` of the other runs, if `kdpipe.compare` raised the error."""

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.why:
            parts.append(f"why: {self.why}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    def as_json(self) -> dict[str, object]:
        """Return the four parts as a JSON-ready mapping (`what`, `where`, `why`, `hint`)."""
        return {"what": self.what, "where": self.where, "why": self.why, "hint": self.hint}


class UsageError(KdpipeError):
    """The command line, the profile or its data are invalid (exit code 2)."""

    exit_code = EXIT_USAGE


class DataError(UsageError):
    """The data set is missing, empty, has one class, or contains a file that cannot be read."""


class ModelError(UsageError):
    """An unknown architecture, or weights that do not fit the architecture they are for."""


class StageError(KdpipeError):
    """A stage could not do its work (exit code 1)."""


class GateMissed(KdpipeError):  # noqa: N818 - the vocabulary's word is "gate"
    """A limit of the profile was exceeded beyond noise (exit code 3)."""

    exit_code = EXIT_GATE_MISSED


class MachineCannot(KdpipeError):  # noqa: N818 - the name is a sentence
    """Something required cannot be done on this machine: no GPU, no runtime (exit code 4)."""

    exit_code = EXIT_MACHINE_CANNOT


class DeviceCannot(MachineCannot):
    """A device cannot be reached, or lacks what is required there: Python, a runtime (exit code 4)."""


def first_line(error: BaseException) -> str:
    """Return the first line with text of an error's message, or the name of its class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Fault:
    """An error in a profile.

    Attributes:
        message: What is wrong.
        file: The file; for an override `--set KEY`.
        line: Counts from 1; 0 means that the place is not in a file (`--set`).
        column: Counts from 1.
        key: The dotted key.
        hint: How to fix it.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""
    hint: str = ""

    @property
    def place(self) -> str:
        """Return the place as `file:line:column`, or `--set KEY`."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class ProfileError(UsageError):
    """A profile with faults: all of them at once, each with its place.

    Attributes:
        faults: The faults, in order.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        lines = [f"{count} fault{'s' if count != 1 else ''} in the profile"]
        for fault in self.faults:
            lines.append(f"  {fault.place}: {fault.message}")
            if fault.hint:
                lines.append(f"    {fault.hint}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ProfileError], tuple[tuple[Fault, ...]]]:
        return type(self), (self.faults,)  # pickled by its faults: it is made only of them

    def as_json(self) -> dict[str, object]:
        """Return the four parts and `faults`, each with its place, as a JSON-ready mapping."""
        return {
            **super().as_json(),
            "faults": [
                {
                    "message": fault.message,
                    "file": fault.file,
                    "line": fault.line,
                    "column": fault.column,
                    "key": fault.key,
                    "hint": fault.hint,
                }
                for fault in self.faults
            ],
        }
