"""Streams, colour, verbosity, errors and progress, on real files and a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from pipeline.console.console import NORMAL, QUIET, SILENT, VERBOSE, Console
from pipeline.console.progress import ConsoleListener, Pace, Rhythm
from pipeline.errors import Fault, GateMissed, ProfileError, UsageError
from pipeline.running.plan import Decision, Reason
from pipeline.running.run_state import StageResult
from pipeline.stage import Stage
from tests.errors import raises

STAGE = Stage(name="build", summary="Build.", module="x", version=1, inputs=(), reads=())
NAMES = ("train", "build", "quantize")
QUICK = Rhythm(redraw_s=0.02, look_s=0.02, plain_s=0.3, plain_share=0.1, plain_apart_s=0.05)


def text_file(path: Path, encoding: str = "utf-8") -> TextIO:
    return path.open("w", encoding=encoding)


def plain_console(**environment: str) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Console(out, err, environment), out, err


class Terminal:
    """A real pseudo-terminal: `stream` is written to, `text()` is what a user's screen was sent."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._received = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:
                return
            self._received += piece

    def text(self) -> str:
        self.stream.close()
        self._reader.join(timeout=10)
        return self._received.decode()

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + 20
        while not re.search(pattern, self._received.decode(errors="ignore")):
            assert time.monotonic() < deadline, f"never saw {pattern!r} in {self._received!r}"
            time.sleep(0.01)


def wait_for(stream: io.StringIO, pattern: str) -> None:
    deadline = time.monotonic() + 20
    while not re.search(pattern, stream.getvalue()):
        assert time.monotonic() < deadline, f"never saw {pattern!r} in {stream.getvalue()!r}"
        time.sleep(0.01)


def wait_for_thread(function: str) -> threading.Thread:
    """The other thread that is in this function, at a lock, once there is one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for thread in threading.enumerate():
            frame = sys._current_frames().get(thread.ident or 0)
            while frame is not None and thread is not threading.current_thread():
                if frame.f_code.co_name == function:
                    return thread
                frame = frame.f_back
        time.sleep(0.01)
    raise AssertionError(f"no thread is in {function}")


def stale(name: str = "build") -> Decision:
    return Decision(
        stage=Stage(name=name, summary="", module="x", version=1, inputs=(), reads=()),
        status="stale",
        key="k" * 64,
        digest=None,
        path=None,
        reasons=(Reason("absent"),),
        seconds_estimate=81.2,
    )


class TestStreams:
    def test_results_and_talk_are_apart(self) -> None:
        console, out, err = plain_console()
        console.result("figures")
        console.line("talk")
        console.warn("careful")
        assert out.getvalue() == "figures\n"
        assert err.getvalue() == "talk\nwarning: careful\n"

    @pytest.mark.parametrize(
        ("quiet", "verbose", "level"),
        [(0, 0, NORMAL), (1, 0, QUIET), (2, 0, SILENT), (3, 0, SILENT), (0, 1, VERBOSE), (1, 1, NORMAL)],
    )
    def test_flags_set_the_verbosity(self, quiet: int, verbose: int, level: int) -> None:
        console, _, _ = plain_console(KDPIPE_LOG="debug" if quiet else "")
        console.quiet, console.verbose = quiet, verbose
        assert console.verbosity == level

    @pytest.mark.parametrize(
        ("word", "level"), [("error", SILENT), ("WARNING", QUIET), ("info", NORMAL), ("debug", VERBOSE)]
    )
    def test_the_environment_sets_the_verbosity(self, word: str, level: int) -> None:
        console, _, _ = plain_console(KDPIPE_LOG=word)
        assert console.verbosity == level

    def test_an_unknown_level_is_refused(self) -> None:
        console, _, _ = plain_console(KDPIPE_LOG="loud")
        with raises(UsageError, what="KDPIPE_LOG"):
            console.check_environment()

    def test_silence_keeps_errors_and_documents(self) -> None:
        console, out, err = plain_console()
        console.quiet = 2
        console.result("figures")
        console.warn("careful")
        console.document("{}")
        console.error(UsageError("wrong"))
        assert out.getvalue() == "{}\n"
        assert err.getvalue() == "error: wrong\n"

    def test_a_reader_that_went_away_is_no_fault(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        console = Console(os.fdopen(writing, "w"), io.StringIO(), {})
        for _ in range(3):
            console.result("x" * 100_000)

    def test_a_name_the_stream_cannot_carry_is_escaped(self, tmp_path: Path) -> None:
        with text_file(tmp_path / "out", "ascii") as stream:
            Console(stream, io.StringIO(), {}).result("Prüfling → 1")
        assert (tmp_path / "out").read_text() == "Pr\\xfcfling \\u2192 1\n"


class TestColour:
    @pytest.mark.parametrize(
        ("environment", "choice", "colored"),
        [
            ({}, "auto", True),
            ({"NO_COLOR": "1"}, "auto", False),
            ({"NO_COLOR": "1"}, "always", True),
            ({"TERM": "dumb"}, "auto", False),
            ({}, "never", False),
        ],
    )
    def test_on_a_terminal(self, environment: dict[str, str], choice: str, colored: bool) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, environment)
        console.color = choice
        console.warn("careful")
        assert ("\x1b[33m" in terminal.text()) is colored

    @pytest.mark.parametrize(
        ("environment", "choice", "colored"),
        [
            ({}, "auto", False),
            ({"FORCE_COLOR": "1"}, "auto", True),
            ({"FORCE_COLOR": "0"}, "auto", False),
            ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
            ({}, "always", True),
        ],
    )
    def test_into_a_file(self, environment: dict[str, str], choice: str, colored: bool) -> None:
        console, _, err = plain_console(**environment)
        console.color = choice
        console.warn("careful")
        assert ("\x1b[33m" in err.getvalue()) is colored


class TestErrors:
    def test_four_parts_and_a_hint_after_a_blank_line(self) -> None:
        console, out, err = plain_console()
        console.error(
            GateMissed(
                "top-1 is below its gate",
                where="stage measure",
                why="97.1 % found\n98.0 % expected",
                hint="kdpipe show p.yaml",
            )
        )
        assert err.getvalue().splitlines() == [
            "error: top-1 is below its gate",
            "  where: stage measure",
            "  why: 97.1 % found",
            "       98.0 % expected",
            "",
            "hint: kdpipe show p.yaml",
        ]
        assert out.getvalue() == ""

    def test_one_fault_is_told_as_an_error(self) -> None:
        console, _, err = plain_console()
        console.error(
            ProfileError([Fault("unknown key 'epoch'", "p.yaml", 3, 5, "epoch", "did you mean epochs?")])
        )
        assert err.getvalue().splitlines() == [
            "error: unknown key 'epoch'",
            "  where: p.yaml:3:5",
            "",
            "hint: did you mean epochs?",
        ]

    def test_all_faults_are_told_with_their_places(self) -> None:
        console, _, err = plain_console()
        console.error(
            ProfileError([Fault("first", "p.yaml", 3, 5, hint="fix it"), Fault("second", "q.yaml", 4, 1)])
        )
        assert "error: 2 faults" in err.getvalue()
        assert "p.yaml:3:5: first\n    fix it" in err.getvalue()
        assert "q.yaml:4:1: second" in err.getvalue()


class TestPlainProgress:
    def test_lines_at_tenths_with_rate_and_time_to_go(self) -> None:
        console, out, err = plain_console()
        with ConsoleListener(console, NAMES, replace(QUICK, plain_s=60.0)) as listener:
            listener.started(stale("train"))
            progress = listener.progress("train")
            for done in range(0, 1001):
                progress.update(done, 1000, "images", epoch=done // 100, val_top1=97.25)
                time.sleep(0.001)
            listener.finished(
                StageResult("train", "ran", key="k" * 64, digest="3f2a9c1b5d7e" + "0" * 52, seconds=81.23)
            )
        text = err.getvalue()
        assert "train     started; it took 81.2 s the last time" in text
        shares = re.findall(
            r"^train +(\d+) %  \S+ images  .*/s.*ETA \d+ s  epoch=\d+ val_top1=97.25$",
            text.replace("  val", " val"),
            re.M,
        )
        assert 2 <= len(shares) <= 11
        assert shares == sorted(shares, key=int)
        assert text.splitlines()[-1].split() == ["+", "train", "ran", "81.2", "s", "3f2a9c1b5d7e"]
        assert "\r" not in text
        assert out.getvalue() == ""

    @pytest.mark.long
    def test_a_silent_stage_is_seen_to_be_alive(self) -> None:
        console, _, err = plain_console()
        with ConsoleListener(console, NAMES, QUICK) as listener:
            progress = listener.progress("build")
            wait_for(err, r"build +still building, \d+ s\n")
            progress.update(1, 4, "targets")
            wait_for(err, r"build +25 %  1/4 targets")
            wait_for(err, r"build +still building, \d+ s \(1/4 targets\)")

    @pytest.mark.parametrize(
        ("stage", "doing"), [("quantize", "quantizing"), ("train", "training"), ("measure", "measuring")]
    )
    def test_the_verb_is_bent(self, stage: str, doing: str) -> None:
        console, _, err = plain_console()
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress(stage)
            wait_for(err, f"still {doing}, ")

    @pytest.mark.long
    @pytest.mark.parametrize("how", ["flag", "quiet", "environment"])
    def test_progress_can_be_hidden(self, how: str) -> None:
        console, _, err = plain_console(**({"KDPIPE_NO_PROGRESS": "1"} if how == "environment" else {}))
        if how == "flag":
            console.progress = False
        if how == "quiet":
            console.quiet = 1
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("build").update(1, 2)
            time.sleep(0.4)
        assert err.getvalue() == ""

    def test_notes_and_waiting(self) -> None:
        console, _, err = plain_console()
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.waiting("train", "process 7 on host")
            listener.progress("train").note("device: cpu")
        assert err.getvalue().splitlines() == ["train     waiting for process 7 on host", "    device: cpu"]

    def test_verbose_tells_keys_and_reasons(self) -> None:
        console, _, err = plain_console()
        console.verbose = 1
        with ConsoleListener(console, NAMES, QUICK) as listener:
            reason = Reason("profile", "distill.epochs", 20, 30)
            listener.finished(StageResult("train", "ran", key="k" * 64, reasons=(reason,), seconds=1.0))
        assert f"key {'k' * 64}" in err.getvalue()
        assert "because profile distill.epochs: 20 -> 30" in err.getvalue()

    def test_whatever_is_handed_over_is_shown(self) -> None:
        console, _, err = plain_console()
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("build").update(1, 2, "", target="tensorrt-fp16", odd=[1])  # type: ignore[arg-type]
            wait_for(err, r"target=tensorrt-fp16  odd=\[1\]")


class TestLiveProgress:
    def test_one_line_is_redrawn_and_then_replaced(self) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"TERM": "xterm", "NO_COLOR": "1"})
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.started(stale("train"))
            progress = listener.progress("train")
            progress.update(400, 1000, "images", epoch=3)
            terminal.wait_for(r"train     ████░░░░░░   40 %  400/1,000 images  .*epoch=3")
            progress.note("device: cpu")
            progress.update(700, 1000, "images", epoch=4)
            terminal.wait_for(r"70 %.*epoch=4")
            listener.finished(StageResult("train", "ran", digest="3f2a9c1b5d7e", seconds=81.2))
            listener.finished(StageResult("build", "hit", digest="aaaabbbbcccc"))
        text = terminal.text()
        assert "\r\x1b[K" in text
        lines = [line.rpartition("\x1b[K")[2] for line in text.split("\n") if line.strip()]
        assert [line.split() for line in lines if line.strip()] == [
            ["device:", "cpu"],
            ["✓", "train", "ran", "81.2", "s", "3f2a9c1b5d7e"],
            ["•", "build", "cached", "aaaabbbbcccc"],
        ]

    def test_a_line_never_exceeds_the_terminal(self) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"TERM": "xterm"})
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("train").update(1, 2, "images", note="x" * 300)
            terminal.wait_for("xxxx")
        drawn = re.split(r"\r\x1b\[K", terminal.text())
        assert max(len(line) for line in drawn) == console.width - 1

    @pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"KDPIPE_NO_PROGRESS": "1"}])
    def test_nothing_is_redrawn_where_it_must_not(self, environment: dict[str, str]) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"NO_COLOR": "1", **environment})
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("train").update(1, 2)
            time.sleep(0.2)
            listener.finished(StageResult("train", "failed", seconds=3.0))
        text = terminal.text()
        assert "\x1b[K" not in text
        assert "✗ train" in text
        assert "failed" in text

    @pytest.mark.long
    def test_a_silent_stage_is_seen_to_be_alive(self) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"TERM": "xterm"})
        with ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("build")
            terminal.wait_for("still building, 1 s")

    def test_a_timer_that_comes_late_draws_nothing(self) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"TERM": "xterm"})
        # Another writer holds the lock while the timer and the end of the run come together.
        with console._lock, ConsoleListener(console, NAMES, QUICK):
            timer = wait_for_thread("_draw_preparing")
        timer.join(timeout=10)
        assert terminal.text() == ""

    @pytest.mark.long
    def test_a_thread_that_comes_late_draws_nothing(self) -> None:
        terminal = Terminal()
        console = Console(io.StringIO(), terminal.stream, {"TERM": "xterm"})
        with console._lock, ConsoleListener(console, NAMES, QUICK) as listener:
            listener.progress("build")
            thread = wait_for_thread("redraw")
        thread.join(timeout=10)
        assert terminal.text() == ""


class TestPace:
    def test_rate_and_time_to_go(self) -> None:
        pace = Pace()
        for second in range(11):
            pace.add(float(second), (100.0 * second, 2000.0, "images", {}))
        assert pace.rate == pytest.approx(100.0)
        assert pace.remaining_s((1000.0, 2000.0, "images", {})) == pytest.approx(10.0)

    def test_going_on_from_a_checkpoint_does_not_count_what_was_there(self) -> None:
        pace = Pace()
        pace.add(0.0, (5000.0, 6000.0, "images", {}))
        pace.add(1.0, (5010.0, 6000.0, "images", {}))
        assert pace.rate == pytest.approx(10.0)

    def test_a_new_phase_begins_anew(self) -> None:
        pace = Pace()
        pace.add(0.0, (0.0, 10.0, "epochs", {}))
        pace.add(1.0, (10.0, 10.0, "epochs", {}))
        pace.add(2.0, (0.0, 10.0, "epochs", {}))
        assert pace.rate is None
        pace.add(3.0, (5.0, 10.0, "epochs", {}))
        assert pace.rate == pytest.approx(5.0)

    def test_only_the_last_seconds_count(self) -> None:
        pace = Pace()
        for second in range(200):
            done = float(second) if second < 100 else 100.0 + 50.0 * (second - 100)
            pace.add(float(second), (done, 1e6, "steps", {}))
        assert pace.rate == pytest.approx(50.0)
