"""One call of the command line: what was asked for, and how its ending is told.

What a user can fix is said in four parts without a traceback; anything else is a defect of ours
and its traceback goes to a file under the store. With `--json`, standard output holds exactly one
document whatever happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.console.console import SILENT, Console
from pipeline.errors import (
    EXIT_INTERRUPTED,
    EXIT_STAGE_FAILED,
    EXIT_TERMINATED,
    KdpipeError,
)

DOCUMENT_VERSION = 1
STORE_VARIABLE = "KDPIPE_STORE"
DEFAULT_STORE = ".kdpipe"


class Terminated(KeyboardInterrupt):
    """SIGTERM: cleans up as an interrupt does, and ends with a code of its own."""


@dataclass
class Session:
    """What one call knows of itself; the options fill it in while they are parsed.

    so_far: the JSON document as far as the command has come; an error is added to it.
    resumable: whether the same command would go on where this one ended.
    """

    console: Console = field(default_factory=Console)
    command: str = ""
    json: bool = False
    traceback: bool = False
    store: Path = field(default_factory=lambda: store_folder(None))
    so_far: Callable[[], dict[str, Any]] = dict
    resumable: bool = False

    def document(self, **fields: Any) -> dict[str, Any]:
        return {"schema_version": DOCUMENT_VERSION, "command": self.command, **fields}

    def print_json(self, **fields: Any) -> None:
        self.console.json_document(self.document(**fields))

    def fail(self, error: KdpipeError) -> int:
        """Tells an error in four parts; returns its exit code."""
        if self.traceback:
            self.console.line(_formatted(error), at=SILENT)
        self._print_failure({**error.as_json(), "exit_code": error.exit_code})
        self.console.error(error)
        return error.exit_code

    def interrupted(self, interrupt: KeyboardInterrupt) -> int:
        """One line for SIGINT and SIGTERM; returns the exit code."""
        word, code = "interrupted", EXIT_INTERRUPTED
        if isinstance(interrupt, Terminated):
            word, code = "terminated", EXIT_TERMINATED
        hint = "run the same command to go on" if self.resumable else ""
        if self.traceback:
            self.console.line(_formatted(interrupt), at=SILENT)
        self._print_failure({"what": word, "where": "", "why": "", "hint": hint, "exit_code": code})
        self.console.redraw("")
        kept = f"; finished stages and checkpoints are kept: {hint}" if hint else ""
        self.console.line(f"{word}{kept}", at=SILENT)
        return code

    def defect(self, error: Exception) -> int:
        """One line, and the file with the traceback; returns the exit code."""
        text = _formatted(error)
        file = None if self.traceback else _write_log(self.store, text)
        if file is None:
            self.console.line(text, at=SILENT)
        said = str(error).strip().split("\n", 1)[0]
        fault = KdpipeError(
            f"kdpipe failed unexpectedly: {type(error).__name__}{': ' if said else ''}{said}",
            where=f"{file} holds the traceback" if file else "",
            hint="please report it with that file" if file else "please report it with the traceback above",
        )
        self._print_failure(
            {**fault.as_json(), "log": str(file) if file else None, "exit_code": EXIT_STAGE_FAILED}
        )
        self.console.error(fault)
        return EXIT_STAGE_FAILED

    def _print_failure(self, error: dict[str, Any]) -> None:
        if self.json:
            self.print_json(**self.so_far(), error=error)


def store_folder(option: str | None) -> Path:
    """`--store`, else $KDPIPE_STORE, else `.kdpipe` in the working folder; absolute."""
    return Path(option or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE).expanduser().absolute()


def _formatted(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)).rstrip()


def _write_log(root: Path, text: str) -> Path | None:
    """Keeps the traceback in the store's logs; None where there is no store to be had."""
    from pipeline.store.store import Store

    try:
        store = Store(root)
        store.check()
        return store.write_log("kdpipe", text + "\n")
    except (KdpipeError, OSError):
        return None
