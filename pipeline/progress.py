"""What a run says while it goes on: one live line a stage, or plain lines where none can be drawn.

A stage's `update` only leaves its figures behind; a thread of ours looks at them from time to
time and does the drawing. So an update costs next to nothing, and a stage that is silent for
minutes is still seen to be alive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from pipeline.console import NORMAL, QUIET, VERBOSE, Console
from pipeline.tables import SHORT_DIGEST, duration, waiting

if TYPE_CHECKING:
    from pipeline.plan import Decision
    from pipeline.runner import StageResult

REDRAW_EVERY_S = 0.1
LOOK_EVERY_S = 0.5
PLAIN_EVERY_S = 30.0
PLAIN_EVERY_SHARE = 0.1
PLAIN_NOT_WITHIN_S = 2.0
RATE_WINDOW_S = 20.0
BAR_CELLS = 20

STATUS_SYMBOL = {"ran": "ran", "hit": "hit", "failed": "failed"}
STATUS_STYLE = {"ran": "green", "hit": "dim", "failed": "red", "not_built": "yellow"}
STATUS_WORD = {"hit": "cached", "not_built": "not built"}

State = tuple[float, float, str, dict[str, "float | str"]]


class StageProgress:
    """What a stage is handed: it keeps the last figures for whoever draws them."""

    __slots__ = ("_listener", "name", "state")

    def __init__(self, listener: ConsoleListener, name: str) -> None:
        self._listener = listener
        self.name = name
        self.state: State | None = None

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        # One assignment: whole for the reading thread without a lock.
        self.state = (done, total, unit, figures)

    def note(self, text: str) -> None:
        self._listener.note(text)


class Pace:
    """Rate and time to go, from the last RATE_WINDOW_S seconds of figures.

    A stage that goes on from a checkpoint begins in the middle, and one with several phases begins
    anew: both start a fresh window.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self._scale: tuple[float, str] | None = None

    def see(self, now: float, state: State) -> None:
        done, total, unit, _ = state
        if self._scale != (total, unit) or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
            self._scale = (total, unit)
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second, once there is something to go by."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now - began >= 0.3 and last > first else None

    def to_go_s(self, state: State) -> float | None:
        rate = self.rate
        return max(state[1] - state[0], 0.0) / rate if rate else None


class ConsoleListener:
    """Tells a console what the runner does; keeps what has finished, for the JSON document."""

    def __init__(self, console: Console, names: tuple[str, ...]) -> None:
        self.console = console
        self.finished_results: list[StageResult] = []
        self._column = max((len(name) for name in names), default=0)
        self._current: _Drawing | None = None

    def started(self, decision: Decision) -> None:
        name = decision.stage.name
        if self.console.live:
            return
        estimate = getattr(decision, "seconds_estimate", None)
        expected = f", about {duration(estimate)} when it last ran" if estimate else ""
        self.console.line(f"{name.ljust(self._column)}  started{expected}")

    def progress(self, stage_name: str) -> StageProgress:
        self._stop_drawing()
        progress = StageProgress(self, stage_name)
        if self.console.progress and self.console.verbosity >= NORMAL:
            self._current = _Drawing(self.console, progress, self._column)
            self._current.start()
        return progress

    def finished(self, result: StageResult) -> None:
        self._stop_drawing()
        self.finished_results.append(result)
        console, status = self.console, result.status
        mark = console.symbol(STATUS_SYMBOL.get(status, "other"))
        word = STATUS_WORD.get(status, status)
        took = duration(result.seconds) if status in ("ran", "failed") and result.seconds else ""
        tail = (result.digest or "").removeprefix("sha256:")[:SHORT_DIGEST]
        text = f"{mark} {result.name.ljust(self._column)}  {word:<9} {took:>13}  {tail}".rstrip()
        console.line(console.styled(text, STATUS_STYLE.get(status, "")))
        console.debug(f"  key {result.key}  {result.path or ''}".rstrip())
        if console.verbosity >= VERBOSE:
            for reason in result.reasons:
                console.debug(f"  because {reason.kind} {reason.key}".rstrip())

    def note(self, text: str) -> None:
        self.console.line(f"  {text}")

    def waiting(self, stage_name: str, holder_text: str) -> None:
        self.console.line(f"{stage_name.ljust(self._column)}  waiting for {holder_text}", at=QUIET)

    def close(self) -> None:
        """Takes the live line away and ends the drawing thread."""
        self._stop_drawing()

    def _stop_drawing(self) -> None:
        if self._current is not None:
            self._current.stop()
            self._current = None


class _Drawing:
    """The thread that looks at one stage's figures and draws them."""

    def __init__(self, console: Console, progress: StageProgress, column: int) -> None:
        self._console = console
        self._progress = progress
        self._column = column
        self._live = console.live
        self._began = time.monotonic()
        self._pace = Pace()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kdpipe-progress", daemon=True)
        self._said_at = self._began
        self._said: State | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=2.0)
        if self._live:
            self._console.redraw("")

    def _watch(self) -> None:
        every = REDRAW_EVERY_S if self._live else LOOK_EVERY_S
        while not self._ended.wait(every):
            now = time.monotonic()
            state = self._progress.state
            if state is not None:
                self._pace.see(now, state)
            if self._live:
                self._console.redraw(self._line(now, state)[: self._console.width - 1])
            elif self._is_due(now, state):
                self._console.line(self._line(now, state))
                self._said_at, self._said = now, state

    def _is_due(self, now: float, state: State | None) -> bool:
        silent_for = now - self._said_at
        if silent_for >= PLAIN_EVERY_S:
            return True
        if state is None or silent_for < PLAIN_NOT_WITHIN_S:
            return False
        before = self._said
        if before is None or before[1:3] != state[1:3] or state[0] < before[0]:
            return _share(state) >= PLAIN_EVERY_SHARE
        return int(_share(state) / PLAIN_EVERY_SHARE) > int(_share(before) / PLAIN_EVERY_SHARE)

    def _line(self, now: float, state: State | None) -> str:
        name = self._progress.name
        elapsed = waiting(now - self._began)
        if state is None or (not self._live and state == self._said):
            at = f" ({_amounts(state)})" if state is not None else ""
            return f"{name.ljust(self._column)}  still {_doing(name)}, {elapsed}{at}"
        parts = [f"{100 * _share(state):3.0f} %", _amounts(state)]
        if self._live:
            parts.insert(0, self._bar(_share(state)))
        rate, to_go = self._pace.rate, self._pace.to_go_s(state)
        if rate is not None:
            parts.append(f"{_figure(rate)} {state[2]}/s".replace(" /s", "/s"))
        parts.append(elapsed)
        if to_go is not None and state[0] < state[1]:
            parts[-1] += f", ETA {waiting(to_go)}"
        parts += [f"{key}={_figure(value)}" for key, value in state[3].items()]
        return f"{name.ljust(self._column)}  " + "  ".join(parts)

    def _bar(self, share: float) -> str:
        full = round(BAR_CELLS * share)
        return self._console.symbol("full") * full + self._console.symbol("empty") * (BAR_CELLS - full)


def _share(state: State) -> float:
    return min(max(state[0] / state[1], 0.0), 1.0) if state[1] > 0 else 0.0


def _amounts(state: State) -> str:
    return f"{state[0]:,.10g}/{state[1]:,.10g} {state[2]}".rstrip()


def _figure(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _doing(verb: str) -> str:
    return f"{verb.removesuffix('e')}ing"
