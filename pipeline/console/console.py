"""The terminal: streams, verbosity, colour, symbols, errors.

Standard output has results only; progress, notes and errors go to standard error. If the reader of a pipe
ends (`| head`), the output ends without an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from pipeline.errors import KdpipeError, ProfileError, UsageError

SILENT, QUIET, NORMAL, VERBOSE = -2, -1, 0, 1
"""-qq: only errors. -q: results, warnings, errors. -v: plain lines, keys, the libraries' warnings."""

LEVELS = {"error": SILENT, "warning": QUIET, "info": NORMAL, "debug": VERBOSE}
"""The values of KDPIPE_LOG."""

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

SYMBOLS = {
    "ran": ("✓", "+"),
    "hit": ("•", "."),
    "failed": ("✗", "x"),
    "other": ("–", "-"),
    "full": ("█", "#"),
    "empty": ("░", "-"),
    "to": ("→", "->"),
    "times": ("×", "x"),
    "minus": ("−", "-"),
}
"""The symbol for UTF-8 streams, and the one for all others."""


class Console:
    """The two output streams of a command.

    The command line sets `quiet`, `verbose`, `color` and `progress` while it is parsed, in any order.

    Args:
        out: Standard output.
        err: Standard error.
        environment: The environment variables.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out: TextIO = out or sys.stdout
        self.err: TextIO = err or sys.stderr
        self.environment = os.environ if environment is None else environment
        self.quiet = 0
        self.verbose = 0
        self.color = "auto"
        self.progress = not _is_set(self.environment, "KDPIPE_NO_PROGRESS")
        self._lock = threading.RLock()
        self._live = ""
        for stream in (self.out, self.err):
            # A name that the terminal cannot show must not end a run of hours.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @property
    def verbosity(self) -> int:
        """The level from SILENT to VERBOSE: by the options, otherwise by KDPIPE_LOG."""
        if self.quiet or self.verbose:
            return max(SILENT, min(VERBOSE, self.verbose - self.quiet))
        word = self.environment.get("KDPIPE_LOG", "").strip().lower()
        return LEVELS.get(word, NORMAL)

    def check_environment(self) -> None:
        """Check kdpipe's environment variables.

        Raises:
            UsageError: KDPIPE_LOG is not a level.
        """
        word = self.environment.get("KDPIPE_LOG", "").strip().lower()
        if word and word not in LEVELS:
            raise UsageError(
                "KDPIPE_LOG is not a level",
                where="environment variable KDPIPE_LOG",
                why=f"found {word!r}, expected one of {', '.join(LEVELS)}",
                hint="unset KDPIPE_LOG",
            )

    @property
    def live(self) -> bool:
        """Whether a live line is drawn: standard error is a terminal, and no option forbids it."""
        return (
            self.progress
            and self.verbosity == NORMAL
            and self.environment.get("TERM") != "dumb"
            and _is_terminal(self.err)
        )

    @property
    def width(self) -> int:
        """The columns of the terminal; 80 where they are unknown."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            columns = os.get_terminal_size(self.err.fileno()).columns
            if columns > 0:
                return columns
        return 80

    def colored(self, stream: TextIO) -> bool:
        """Return whether text on this stream has colour."""
        if self.color != "auto":
            return self.color == "always"
        if self.environment.get("NO_COLOR"):
            return False
        if _is_set(self.environment, "FORCE_COLOR"):
            return True
        return self.environment.get("TERM") != "dumb" and _is_terminal(stream)

    def styled(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """Return the text in a style of STYLES if the stream (default: standard error) has colour."""
        if not style or not self.colored(stream or self.err):
            return text
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def symbol(self, name: str, stream: TextIO | None = None) -> str:
        """Return a symbol of SYMBOLS that the stream (default: standard error) can show."""
        fancy, plain = SYMBOLS[name]
        return fancy if carries_unicode(stream or self.err) else plain

    def result(self, text: str) -> None:
        """Print a result on standard output, except with -qq."""
        if self.verbosity > SILENT:
            self.document(text)

    def document(self, text: str) -> None:
        """Print a document (JSON, a schema) on standard output, at every verbosity."""
        with self._lock:
            self._erase()
            _write(self.out, text if text.endswith("\n") else text + "\n")

    def json_document(self, document: Mapping[str, Any]) -> None:
        """Print a JSON document on standard output."""
        import json

        self.document(json.dumps(document, indent=2, ensure_ascii=not carries_unicode(self.out), default=str))

    def line(self, text: str, at: int = NORMAL, *, ended: threading.Event | None = None) -> None:
        """Print a line on standard error, above the live line.

        Args:
            text: The line.
            at: The lowest verbosity that prints it.
            ended: See `redraw`.
        """
        if self.verbosity < at:
            return
        with self._lock:
            if ended is not None and ended.is_set():
                return
            live = self._live
            self._erase()
            _write(self.err, text + "\n")
            if live:
                self._draw(live)

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
        self.line(f"{self.styled('warning:', 'yellow')} {text}", at=QUIET)

    def debug(self, text: str) -> None:
        """Print a line on standard error that only -v shows."""
        self.line(self.styled(text, "dim"), at=VERBOSE)

    def redraw(self, text: str, *, ended: threading.Event | None = None) -> None:
        """Replace the live line; empty text removes it.

        Args:
            text: The new line.
            ended: Once it is set, nothing is drawn. A thread that draws passes it, because it may have to
                wait for another writer, and what it draws may have ended meanwhile.
        """
        with self._lock:
            if ended is not None and ended.is_set():
                return
            if text != self._live:
                self._erase()
                if text:
                    self._draw(text)

    def error(self, error: KdpipeError) -> None:
        """Print an error: what, where, why, and after a blank line the hint."""
        with self._lock:
            self._erase()
            _write(self.err, self._in_four_parts(error))

    def _in_four_parts(self, error: KdpipeError) -> str:
        parts = {"where": error.where, "why": error.why}
        what, hint = error.what, error.hint
        if isinstance(error, ProfileError) and len(error.faults) == 1:
            fault = error.faults[0]
            what, hint = fault.message, fault.hint or hint
            parts = {"where": fault.place or error.where, "why": error.why}
        lines = [f"{self.styled('error:', 'red')} {what}"]
        for name, text in parts.items():
            if text:
                lines.append(f"  {self.styled(name + ':', 'bold')} {_indented(text, len(name) + 4)}")
        if hint:
            lines += ["", f"{self.styled('hint:', 'cyan')} {_indented(hint, 6)}"]
        return "\n".join(lines) + "\n"

    def _draw(self, text: str) -> None:
        self._live = text
        _write(self.err, text)

    def _erase(self) -> None:
        if self._live:
            self._live = ""
            _write(self.err, "\r\x1b[K")


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Redirect what libraries print on standard output to standard error, C++ libraries included.

    A stage may load a dozen libraries; a single line from one of them would break a JSON document.
    """
    try:
        number = sys.stdout.fileno()
        saved = os.dup(number)
    except (OSError, ValueError, AttributeError):
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    sys.stdout.flush()
    try:
        os.dup2(sys.stderr.fileno(), number)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os.dup2(saved, number)
        os.close(saved)


def carries_unicode(stream: TextIO) -> bool:
    """Return whether the stream's encoding is UTF-8."""
    return (getattr(stream, "encoding", None) or "").lower().replace("_", "-") in ("utf-8", "utf8")


def abandon(stream: TextIO) -> None:
    """Discard everything that is written to a stream whose reader has ended.

    Otherwise the rest of its buffer would fail again when the interpreter ends.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; it is no error if the reader has ended."""
    # A stream may be closed already while the interpreter ends: a ValueError.
    with contextlib.suppress(ValueError):
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            abandon(stream)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "") not in ("", "0")


def _indented(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)
