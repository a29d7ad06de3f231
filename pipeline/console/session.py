"""One call of the command line: its options, its JSON document and its ending.

An error that the user can fix is printed in four parts without a traceback. Any other exception is a defect
of kdpipe; its traceback goes to a file in the store. With `--json`, standard output holds exactly one
document, whatever happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console.console import SILENT, Console
from pipeline.errors import (
    EXIT_INTERRUPTED,
    EXIT_STAGE_FAILED,
    EXIT_TERMINATED,
    KdpipeError,
)

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import StageResult

DOCUMENT_VERSION = 1
STORE_VARIABLE = "KDPIPE_STORE"
DEFAULT_STORE = ".kdpipe"


class Terminated(KeyboardInterrupt):
    """SIGTERM: cleans up like an interrupt, and ends with its own exit code."""


@dataclass
class Session:
    """The state of one call of the command line.

    Attributes:
        console: Where everything is printed.
        command: The name of the command.
        json: Whether the call prints one JSON document.
        traceback: Whether errors are printed with their tracebacks.
        store: The store of the call.
        so_far: Returns the fields of the JSON document so far; an error is added to them.
        results: Returns the results of the run so far, also after an error or an interrupt.
        loaded: The profile, if the caller has loaded it: its file is then not read again.
        resumable: Whether the same command would continue where this one ended.
    """

    console: Console = field(default_factory=Console)
    command: str = ""
    json: bool = False
    traceback: bool = False
    store: Path = field(default_factory=lambda: store_folder(None))
    so_far: Callable[[], dict[str, Any]] = dict
    results: Callable[[], Sequence[StageResult]] = tuple
    loaded: LoadedProfile | None = None
    resumable: bool = False

    def document(self, **fields: Any) -> dict[str, Any]:
        """Return the JSON document of this call with these fields."""
        return {"schema_version": DOCUMENT_VERSION, "command": self.command, **fields}

    def print_json(self, **fields: Any) -> None:
        """Print the JSON document of this call with these fields."""
        self.console.json_document(self.document(**fields))

    def fail(self, error: KdpipeError) -> int:
        """Print an error in four parts.

        Returns:
            The error's exit code.
        """
        if self.traceback:
            self.console.line(_formatted(error), at=SILENT)
        self._print_failure({**error.as_json(), "exit_code": error.exit_code})
        self.console.error(error)
        return error.exit_code

    def interrupted(self, interrupt: KeyboardInterrupt) -> int:
        """Print one line about SIGINT or SIGTERM.

        Returns:
            The exit code of the signal.
        """
        word, code = "interrupted", EXIT_INTERRUPTED
        if isinstance(interrupt, Terminated):
            word, code = "terminated", EXIT_TERMINATED
        hint = "run the same command to go on" if self.resumable else ""
        if self.traceback:
            self.console.line(_formatted(interrupt), at=SILENT)
        self._print_failure({"what": word, "where": "", "why": "", "hint": hint, "exit_code": code})
        self.console.redraw("")
        resume = f"; finished stages and checkpoints are kept: {hint}" if hint else ""
        self.console.line(f"{word}{resume}", at=SILENT)
        return code

    def defect(self, error: Exception) -> int:
        """Write the traceback of a defect of kdpipe to a file, and print one line about it.

        Returns:
            EXIT_STAGE_FAILED.
        """
        text = _formatted(error)
        file = None if self.traceback else _write_log(self.store, text)
        if file is None:
            self.console.line(text, at=SILENT)
        message = str(error).strip().split("\n", 1)[0]
        failure = KdpipeError(
            f"kdpipe failed unexpectedly: {type(error).__name__}{': ' if message else ''}{message}",
            where=f"{file} holds the traceback" if file else "",
            hint="please report it with that file" if file else "please report it with the traceback above",
        )
        self._print_failure(
            {**failure.as_json(), "log": str(file) if file else None, "exit_code": EXIT_STAGE_FAILED}
        )
        self.console.error(failure)
        return EXIT_STAGE_FAILED

    def _print_failure(self, error: dict[str, Any]) -> None:
        if self.json:
            self.print_json(**self.so_far(), error=error)


def store_folder(option: str | None) -> Path:
    """Return the absolute path of the store.

    Args:
        option: The value of `--store`; None for $KDPIPE_STORE, or `.kdpipe` in the working folder.
    """
    return Path(option or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE).expanduser().absolute()


def _formatted(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)).rstrip()


def _write_log(root: Path, text: str) -> Path | None:
    """Write the traceback to the store's logs; return None if the store cannot be used."""
    from pipeline.store.store import Store

    try:
        store = Store(root)
        store.check()
        return store.write_log("kdpipe", text + "\n")
    except (KdpipeError, OSError):
        return None
