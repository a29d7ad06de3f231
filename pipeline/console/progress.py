"""The progress of a run: one live line for each stage, or plain lines where none can be drawn.

A stage's `update` only stores its figures. A thread reads them regularly and draws the line. So an update
costs almost nothing, and a stage that sends nothing for minutes is still shown as running.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.console.console import NORMAL, QUIET, Console
from pipeline.console.json_documents import reasons_in_words
from pipeline.console.tables import SHORT_DIGEST, duration, waiting

if TYPE_CHECKING:
    from pipeline.running.plan import Decision
    from pipeline.running.run_state import StageResult

RATE_WINDOW_S = 20.0
BAR_CELLS = 10
PREPARING_AFTER_S = 0.7

STATUS_SYMBOL = {"ran": "ran", "hit": "hit", "failed": "failed"}
STATUS_STYLE = {"ran": "green", "hit": "dim", "failed": "red", "not_built": "yellow"}
STATUS_WORD = {"hit": "cached", "not_built": "not built"}

ETA = "eta_s"
"""The name of the figure by which a stage reports the remaining time itself; "" if it is unknown."""

State = tuple[float, float, str, dict[str, "float | str"]]


@dataclass(frozen=True)
class Rhythm:
    """How often progress is printed.

    Attributes:
        redraw_s: Seconds between two drawings of the live line.
        look_s: Seconds between two readings of the figures where lines are plain.
        plain_s: The longest time between two plain lines, in seconds, also for a stage that sends nothing.
        plain_share: The share of the work after which a plain line is printed.
        plain_apart_s: The shortest time between two plain lines, in seconds.
    """

    redraw_s: float = 0.1
    look_s: float = 0.5
    plain_s: float = 30.0
    plain_share: float = 0.1
    plain_apart_s: float = 2.0


class StageProgress:
    """The progress reporter of a stage: it stores the last figures for the thread that draws them."""

    __slots__ = ("_listener", "name", "state")

    def __init__(self, listener: ConsoleListener, name: str) -> None:
        self._listener = listener
        self.name = name
        self.state: State | None = None

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Store the figures; see `pipeline.stage.Progress.update`."""
        # One assignment: the reading thread needs no lock.
        self.state = (done, total, unit, figures)

    def note(self, text: str) -> None:
        """Print a line above the live line."""
        self._listener.note(text)


class Pace:
    """The rate and the remaining time, from the figures of the last RATE_WINDOW_S seconds.

    A stage that resumes from a checkpoint begins in the middle, and one with several phases begins again at
    0. Both start a new window.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()
        self._scale: tuple[float, str] | None = None

    def add(self, now: float, state: State) -> None:
        """Add the figures at a time (monotonic, in seconds)."""
        done, total, unit, _ = state
        if self._scale != (total, unit) or (self._points and done < self._points[-1][1]):
            self._points.clear()
            self._scale = (total, unit)
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[1][0] > RATE_WINDOW_S:
            self._points.popleft()

    @property
    def rate(self) -> float | None:
        """The units per second; None before there are enough figures."""
        if len(self._points) < 2:
            return None
        (began, first), (now, last) = self._points[0], self._points[-1]
        return (last - first) / (now - began) if now - began >= 0.3 and last > first else None

    def remaining_s(self, state: State) -> float | None:
        """Return the remaining time in seconds; None before there are enough figures."""
        rate = self.rate
        return max(state[1] - state[0], 0.0) / rate if rate else None


class ConsoleListener:
    """A listener that prints the events of a run.

    Use it as a context manager: at its end the live line is erased.
    """

    def __init__(self, console: Console, names: tuple[str, ...], rhythm: Rhythm | None = None) -> None:
        self.console = console
        self._rhythm = rhythm or Rhythm()
        self._column = max((len(name) for name in names), default=0)
        self._current: _Drawing | None = None
        self._prepared = threading.Event()
        self._preparing = threading.Timer(PREPARING_AFTER_S, self._draw_preparing)
        self._preparing.daemon = True

    def __enter__(self) -> ConsoleListener:
        if self.console.live:
            self._preparing.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._stop_drawing()

    def started(self, decision: Decision) -> None:
        """Print that a stage runs, where no live line is drawn."""
        self._stop_drawing()
        if self.console.live:
            return
        estimate = decision.seconds_estimate
        expected = f"; it took {duration(estimate)} the last time" if estimate and estimate >= 1 else ""
        self.console.line(f"{decision.stage.name.ljust(self._column)}  started{expected}")

    def progress(self, stage_name: str) -> StageProgress:
        """Return the progress reporter of a stage, and start drawing its line."""
        self._stop_drawing()
        progress = StageProgress(self, stage_name)
        if self.console.progress and self.console.verbosity >= NORMAL:
            self._current = _Drawing(self.console, progress, self._column, self._rhythm)
            self._current.start()
        return progress

    def finished(self, result: StageResult) -> None:
        """Print the result of a stage."""
        self._stop_drawing()
        console, status = self.console, result.status
        mark = console.symbol(STATUS_SYMBOL.get(status, "other"))
        word = STATUS_WORD.get(status, status)
        took = duration(result.seconds) if result.seconds else ""
        digest = (result.digest or "")[:SHORT_DIGEST]
        text = f"{mark} {result.name.ljust(self._column)}  {word:<9}  {took:>13}  {digest}".rstrip()
        console.line(console.styled(text, STATUS_STYLE.get(status, "")))
        console.debug(f"    key {result.key}")
        for reason in reasons_in_words(result.reasons, console.symbol("to"), every=True):
            console.debug(f"    because {reason}")

    def note(self, text: str) -> None:
        """Print a line about the current stage."""
        self.console.line(f"    {text}")

    def waiting(self, stage_name: str, holder_text: str) -> None:
        """Print which process makes the artefact of a stage."""
        self._stop_drawing()
        self.console.line(f"{stage_name.ljust(self._column)}  waiting for {holder_text}", at=QUIET)

    def _draw_preparing(self) -> None:
        self.console.redraw("getting ready", ended=self._prepared)

    def _stop_drawing(self) -> None:
        # A timer that has already called its function cannot be cancelled; the event stops its drawing.
        self._prepared.set()
        self._preparing.cancel()
        if self._current is not None:
            self._current.stop()
            self._current = None
        self.console.redraw("")


class _Drawing:
    """The thread that reads one stage's figures and draws them."""

    def __init__(self, console: Console, progress: StageProgress, column: int, rhythm: Rhythm) -> None:
        self._console = console
        self._rhythm = rhythm
        self._progress = progress
        self._column = column
        self._live = console.live
        self._began = time.monotonic()
        self._pace = Pace()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kdpipe-progress", daemon=True)
        self._printed_at = self._began
        self._printed: State | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        every = self._rhythm.redraw_s if self._live else self._rhythm.look_s
        while not self._ended.wait(every):
            now = time.monotonic()
            state = self._progress.state
            if state is not None:
                self._pace.add(now, state)
            if self._live:
                self._console.redraw(self._line(now, state)[: self._console.width - 1], ended=self._ended)
            elif self._is_due(now, state):
                self._console.line(self._line(now, state), ended=self._ended)
                self._printed_at, self._printed = now, state

    def _is_due(self, now: float, state: State | None) -> bool:
        silent_for = now - self._printed_at
        if silent_for >= self._rhythm.plain_s:
            return True
        if state is None or silent_for < self._rhythm.plain_apart_s:
            return False
        before = self._printed
        if before is None or before[1:3] != state[1:3] or state[0] < before[0]:
            return _share(state) >= self._rhythm.plain_share
        step = self._rhythm.plain_share
        return int(_share(state) / step) > int(_share(before) / step)

    def _line(self, now: float, state: State | None) -> str:
        name = self._progress.name
        elapsed = waiting(now - self._began)
        if state is None or (not self._live and state == self._printed):
            at = f" ({_amounts(state)})" if state is not None else ""
            return f"{name.ljust(self._column)}  still {_doing(name)}, {elapsed}{at}"
        parts = [f"{100 * _share(state):3.0f} %"]
        rate, remaining_s = self._pace.rate, self._pace.remaining_s(state)
        if state[2] != "%":
            parts.append(_amounts(state))
            if rate is not None:
                parts.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")
        if ETA in state[3]:
            eta_s = state[3][ETA]
            remaining_s = None if isinstance(eta_s, str) else eta_s
        parts.append(
            f"ETA {waiting(remaining_s)}" if remaining_s is not None and state[0] < state[1] else elapsed
        )
        parts += [f"{key}={_figure(value)}" for key, value in state[3].items() if key != ETA]
        line = "  ".join(parts)
        if self._live:
            room = self._console.width - 1 - self._column - len(line) - BAR_CELLS - 4
            line = f"{self._bar(_share(state))}  {line}" if room >= 0 else line
        return f"{name.ljust(self._column)}  {line}"

    def _bar(self, share: float) -> str:
        full = round(BAR_CELLS * share)
        return self._console.symbol("full") * full + self._console.symbol("empty") * (BAR_CELLS - full)


def _share(state: State) -> float:
    return min(max(state[0] / state[1], 0.0), 1.0) if state[1] > 0 else 0.0


def _amounts(state: State) -> str:
    return f"{state[0]:,.10g}/{state[1]:,.10g} {state[2]}".rstrip()


def _figure(value: float | str) -> str:
    try:
        return f"{value:,.0f}" if isinstance(value, int) or abs(float(value)) >= 1000 else f"{value:.4g}"
    except (TypeError, ValueError):  # a word, or any other value from a plug-in
        return str(value)


def _doing(verb: str) -> str:
    if " " in verb:  # a run of a comparison, named after its method and seed
        return "training"
    return f"{verb.removesuffix('e')}ing"
