"""The heartbeat rule, by itself and on real processes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import heartbeat
from pipeline.heartbeat import (
    COUNTED_S,
    LOOK_S,
    Beat,
    Beats,
    Heartbeat,
    Hung,
    Silence,
    beat_of,
    cpu_seconds,
    follow,
    run_while_alive,
)

GAPS = st.lists(st.floats(0.001, 200.0), min_size=1, max_size=6)


def pass_time(pulse: Heartbeat, now: float, seconds: float, *, computes: bool = False) -> float:
    """Look at a silent worker as often as a parent does; the time afterwards."""
    until, cpu_s = now + seconds, 0.0
    while now < until:
        now = min(now + LOOK_S, until)
        cpu_s += LOOK_S if computes else 0.0
        pulse.look(now, cpu_s)
    return now


@given(GAPS)
def test_steps_that_never_take_much_longer_than_the_slowest_go_on_for_ever(gaps: list[float]) -> None:
    pulse, now, slowest = Heartbeat(Silence(60.0, 600.0), 0.0), 0.0, 0.0
    pulse.beat(Beat("accuracy", 0, 100, "images"), now)
    for done, gap in enumerate(gaps, 1):
        step_s = min(gap, slowest + 59.0)
        now = pass_time(pulse, now, step_s)
        assert not pulse.hung
        pulse.beat(Beat("accuracy", done, 100, "images"), now)
        slowest = max(slowest, step_s)
        assert pulse.limit_s == pytest.approx(60.0 + slowest)


@given(GAPS)
def test_a_silent_worker_is_hung_a_minute_after_its_slowest_step(gaps: list[float]) -> None:
    pulse, now = Heartbeat(Silence(60.0, 600.0), 0.0), 0.0
    pulse.beat(Beat("accuracy", 0, 100, "images"), now)
    for done, gap in enumerate(gaps, 1):
        now = pass_time(pulse, now, gap)
        pulse.beat(Beat("accuracy", done, 100, "images"), now)
    now = pass_time(pulse, now, max(gaps) + 59.0)
    assert not pulse.hung
    pass_time(pulse, now, 2.0, computes=True)  # computing is no step
    assert pulse.hung
    assert f"accuracy, {len(gaps)} of 100 images: silent for" in pulse.words()


@given(st.floats(1.0, 2000.0))
def test_loading_and_the_first_step_last_as_long_as_they_compute(seconds: float) -> None:
    pulse = Heartbeat(Silence(60.0, 600.0), 0.0)
    pulse.beat(Beat("loading the target"), 0.0)
    now = pass_time(pulse, 0.0, seconds, computes=True)
    assert not pulse.hung
    pulse.beat(Beat("accuracy", 0, 100, "images"), now)
    now = pass_time(pulse, now, seconds, computes=True)
    assert not pulse.hung
    pulse.beat(Beat("accuracy", 1, 100, "images"), now)
    assert pulse.slowest_s == pytest.approx(seconds), "the first step counts whole"
    pass_time(pulse, now, seconds + 59.0)
    assert not pulse.hung


def test_loading_that_does_not_compute_is_hung() -> None:
    pulse = Heartbeat(Silence(60.0, 600.0), 0.0)
    pulse.beat(Beat("loading the target"), 0.0)
    now = pass_time(pulse, 0.0, 599.0)
    assert not pulse.hung
    pass_time(pulse, now, 2.0)
    assert pulse.hung
    assert pulse.words() == "loading the target: no progress and no CPU time used for 601 s"


def test_where_cpu_time_is_not_reported_loading_is_not_judged() -> None:
    pulse = Heartbeat(Silence(60.0, 600.0), 0.0)
    for second in range(10_000):
        pulse.look(float(second), None)
    assert not pulse.hung


def test_a_beat_that_repeats_the_last_one_is_no_progress() -> None:
    pulse = Heartbeat(Silence(60.0, 600.0), 0.0)
    pulse.beat(Beat("accuracy", 1, 100), 0.0)
    pulse.beat(Beat("accuracy", 2, 100), 1.0)
    for second in range(2, 70):
        pulse.beat(Beat("accuracy", 2, 100), float(second))
    assert pulse.hung


def test_a_parent_that_was_suspended_has_seen_no_silence() -> None:
    pulse = Heartbeat(Silence(60.0, 600.0), 0.0)
    pulse.beat(Beat("accuracy", 1, 100), 0.0)
    pulse.look(100_000.0, 0.0)
    assert pulse.silent_s == COUNTED_S


def test_beats_of_a_timed_phase_are_few_and_come_back_whole() -> None:
    lines: list[str] = []
    beats = Beats(lines.append)
    beats.phase("sampling", 10.0, "s", every_s=3600.0)
    for done in range(1, 1000):
        beats.step(done, 20.0)
    assert [beat_of(line) for line in lines] == [
        Beat("sampling", 0, 10.0, "s"),
        Beat("sampling", 1, 20.0, "s"),
    ]
    beats.phase("accuracy", 5, "images", every_s=0.0)
    beats.step(4)
    beats.step(5)
    assert beat_of(lines[-1]) == Beat("accuracy", 5, 5, "images")


@pytest.mark.parametrize("line", ["", "x", "3", "{}", '{"ns": [1]}', '{"beat": {"no": 1}}', b"\xff"])
def test_other_lines_hold_no_beat(line: str | bytes) -> None:
    assert beat_of(line) is None


def started(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


BEATING = """
import json, sys, time
def beat(done):
    print(json.dumps({"beat": {"phase": "accuracy", "done": done, "total": 9, "unit": "images"}}), flush=True)
"""


def test_the_lines_of_a_worker_are_followed_to_the_end_of_its_output() -> None:
    with started(f"{BEATING}\nfor done in range(9): beat(done)\nprint('last', end='')") as process:
        lines = list(follow(process, Heartbeat(Silence(), time.monotonic())))
    assert [beat.done for line in lines if (beat := beat_of(line))] == [*range(9)]
    assert lines[-1] == b"last"


def test_a_worker_that_falls_silent_between_steps_is_reported_with_its_last_step() -> None:
    with started(f"{BEATING}\nbeat(1)\nbeat(2)\ntime.sleep(600)") as process:
        with pytest.raises(Hung, match="accuracy, 2 of 9 images: silent for"):
            list(follow(process, Heartbeat(Silence(step_s=1.0), time.monotonic())))
        process.kill()


COMPUTE = "import time\nwhile time.process_time() < 5: pass"
COMPUTE_IN_A_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {COMPUTE!r}])"


@pytest.mark.parametrize("code", [COMPUTE, COMPUTE_IN_A_CHILD])
def test_a_program_that_computes_runs_to_its_end(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes for longer than it may be silent."""
    monkeypatch.setattr(heartbeat, "CPU_STEP_S", 0.02)  # a busy machine gives it a small share
    done = run_while_alive([sys.executable, "-c", code], doing="computing", silence=Silence(load_s=4.0))
    assert done.returncode == 0


def test_a_program_that_sleeps_is_ended() -> None:
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    with pytest.raises(Hung, match="converting: no progress and no CPU time used"):
        run_while_alive([sys.executable, "-c", code], doing="converting", silence=Silence(load_s=1.0))


def test_the_output_and_exit_code_of_a_program_come_back() -> None:
    code = "import sys; print('out'); sys.stderr.buffer.write(b'err\\xff'); sys.exit(3)"
    done = run_while_alive([sys.executable, "-c", code], doing="it")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err�")


def test_cpu_time_of_a_process_that_has_ended_is_not_known() -> None:
    process = started("pass")
    process.communicate()
    assert cpu_seconds(process.pid) is None
