"""What a run says while it goes on: one live line a stage, or plain lines where none can be drawn.

A stage's `update` only leaves its figures behind; a thread of ours looks at them from time to
time and does the drawing. So an update costs next to nothing, and a stage that is silent for
minutes is still seen to be alive.
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
"""A figure by which a stage tells the time to go itself, where it knows better than the rate; "" if nobody
can tell."""

State = tuple[float, float, str, dict[str, "float | str"]]


@dataclass(frozen=True)
class Rhythm:
    """How often something is said, in seconds and as a share of the work.

    redraw_s: of the live line. look_s: between looks at the figures where lines are plain.
    plain_s: a plain line at least so often, also when the stage is silent; plain_share: and after
    each such share of the work; but none within plain_apart_s of the one before.
    """

    redraw_s: float = 0.1
    look_s: float = 0.5
    plain_s: float = 30.0
    plain_share: float = 0.1
    plain_apart_s: float = 2.0


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
    """Tells a console what the runner does. Used as a context: at its end the line is gone."""

    def __init__(self, console: Console, names: tuple[str, ...], rhythm: Rhythm | None = None) -> None:
        self.console = console
        self._rhythm = rhythm or Rhythm()
        self._column = max((len(name) for name in names), default=0)
        self._current: _Drawing | None = None
        self._prepared = threading.Event()
        self._preparing = threading.Timer(PREPARING_AFTER_S, self._tell_preparing)
        self._preparing.daemon = True

    def __enter__(self) -> ConsoleListener:
        if self.console.live:
            self._preparing.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._stop_drawing()

    def started(self, decision: Decision) -> None:
        self._stop_drawing()
        if self.console.live:
            return
        estimate = decision.seconds_estimate
        expected = f"; it took {duration(estimate)} the last time" if estimate and estimate >= 1 else ""
        self.console.line(f"{decision.stage.name.ljust(self._column)}  started{expected}")

    def progress(self, stage_name: str) -> StageProgress:
        self._stop_drawing()
        progress = StageProgress(self, stage_name)
        if self.console.progress and self.console.verbosity >= NORMAL:
            self._current = _Drawing(self.console, progress, self._column, self._rhythm)
            self._current.start()
        return progress

    def finished(self, result: StageResult) -> None:
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
        self.console.line(f"    {text}")

    def waiting(self, stage_name: str, holder_text: str) -> None:
        self._stop_drawing()
        self.console.line(f"{stage_name.ljust(self._column)}  waiting for {holder_text}", at=QUIET)

    def _tell_preparing(self) -> None:
        self.console.redraw("getting ready", ended=self._prepared)

    def _stop_drawing(self) -> None:
        # A timer that has begun to call cannot be cancelled any more; the event stops its drawing.
        self._prepared.set()
        self._preparing.cancel()
        if self._current is not None:
            self._current.stop()
            self._current = None
        self.console.redraw("")


class _Drawing:
    """The thread that looks at one stage's figures and draws them."""

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
        self._said_at = self._began
        self._said: State | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        every = self._rhythm.redraw_s if self._live else self._rhythm.look_s
        while not self._ended.wait(every):
            now = time.monotonic()
            state = self._progress.state
            if state is not None:
                self._pace.see(now, state)
            if self._live:
                self._console.redraw(self._line(now, state)[: self._console.width - 1], ended=self._ended)
            elif self._is_due(now, state):
                self._console.line(self._line(now, state), ended=self._ended)
                self._said_at, self._said = now, state

    def _is_due(self, now: float, state: State | None) -> bool:
        silent_for = now - self._said_at
        if silent_for >= self._rhythm.plain_s:
            return True
        if state is None or silent_for < self._rhythm.plain_apart_s:
            return False
        before = self._said
        if before is None or before[1:3] != state[1:3] or state[0] < before[0]:
            return _share(state) >= self._rhythm.plain_share
        step = self._rhythm.plain_share
        return int(_share(state) / step) > int(_share(before) / step)

    def _line(self, now: float, state: State | None) -> str:
        name = self._progress.name
        elapsed = waiting(now - self._began)
        if state is None or (not self._live and state == self._said):
            at = f" ({_amounts(state)})" if state is not None else ""
            return f"{name.ljust(self._column)}  still {_doing(name)}, {elapsed}{at}"
        parts = [f"{100 * _share(state):3.0f} %"]
        rate, to_go = self._pace.rate, self._pace.to_go_s(state)
        if state[2] != "%":
            parts.append(_amounts(state))
            if rate is not None:
                parts.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")
        if ETA in state[3]:
            told = state[3][ETA]
            to_go = None if isinstance(told, str) else told
        parts.append(f"ETA {waiting(to_go)}" if to_go is not None and state[0] < state[1] else elapsed)
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
    except (TypeError, ValueError):  # a word, or whatever a plug-in hands over
        return str(value)


def _doing(verb: str) -> str:
    if " " in verb:  # a run of a comparison, named by its method and seed
        return "training"
    return f"{verb.removesuffix('e')}ing"
