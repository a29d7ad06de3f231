"""Workers that are slow and workers that hang: the first are waited for, the second are ended."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import heartbeat
from pipeline.errors import StageError
from pipeline.heartbeat import Beat, Silence
from stages.measure import TargetProgress
from stages.measuring import launch, turns
from stages.measuring.latency import WARMUP_CALLS
from stages.measuring.settings import MeasureSettings
from tests.errors import raises
from tests.stages.measuring import slow_runtime

QUICK = MeasureSettings(
    warmup_s=0.02,
    warmup_max_s=0.1,
    duration_s=0.1,
    max_duration_s=0.2,
    min_samples=10,
    resamples=100,
    compare_s=0.1,
    compare_rounds=4,
    accuracy_batch=2,
)


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of these tests are short, and a worker may get a small share of the processor only."""
    monkeypatch.setattr(heartbeat, "CPU_STEP_S", 0.02)


def workers_left(folder: Path) -> bool:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return str(folder) in listed


def test_an_accuracy_pass_may_last_longer_than_any_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-four batches, which together take longer than a worker may be silent and compute nothing."""
    monkeypatch.setattr(heartbeat, "CPU_STEP_S", 0.4)
    target = slow_runtime.subject(tmp_path, monkeypatch, images=48, batch_s=0.5)
    heard: list[Beat] = []
    silence = Silence(step_s=10.0, load_s=10.0)
    _, output = launch.run(target, QUICK, "accuracy", threads=1, silence=silence, on_beat=heard.append)
    assert np.load(output / "logits.npy").shape == (48, 4)
    assert [beat.done for beat in heard if beat.phase == "accuracy"] == [*range(0, 49, 2)]
    assert {beat.total for beat in heard if beat.phase == "accuracy"} == {48}


@pytest.mark.parametrize(
    ("hang", "mode", "why"),
    [
        ("load", "accuracy", "loading the target: no progress and no CPU time used for"),
        ("batch 1", "accuracy", "accuracy, 0 of 24 images: no progress and no CPU time used for"),
        ("batch 3", "accuracy", "accuracy, 4 of 24 images: silent for"),
        ("load", "latency", "loading the target: no progress"),
        ("call 1", "latency", "the first inference: no progress"),
        ("call 4", "latency", "warm-up, "),
        ("call 1", "open_loop", "warm-up, 0 of "),
    ],
)
def test_a_worker_that_hangs_is_ended_and_it_is_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: str, mode: str, why: str
) -> None:
    target = slow_runtime.subject(tmp_path, monkeypatch, images=24, hang=hang)
    more: dict[str, Any] = {} if mode == "accuracy" else {"batch": 1}
    more |= {"rate_per_s": 50.0} if mode == "open_loop" else {}
    with raises(StageError, what="measuring slow-fp32 hung") as caught:
        launch.run(target, QUICK, mode, threads=1, silence=Silence(3.0, 6.0), **more)
    assert caught.value.why.startswith(why)
    assert caught.value.where
    assert not workers_left(target.work)


def test_arrivals_that_are_far_apart_are_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = slow_runtime.subject(tmp_path, monkeypatch)
    settings = QUICK.model_copy(update={"arrivals": "regular", "arrivals_s": 13.0})
    entry, _ = launch.run(
        target, settings, "open_loop", silence=Silence(10.0, 10.0), threads=1, batch=1, rate_per_s=0.08
    )
    assert entry["n"] == 1


class Updates:
    """A progress reporter that remembers its updates."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, str, dict[str, Any]]] = []

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        assert 0 <= done <= total
        self.seen.append((done, total, unit, figures))

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_has_the_images_done_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = slow_runtime.subject(tmp_path, monkeypatch, images=24, batch_s=0.1)
    progress = Updates()
    watched = TargetProgress(progress, QUICK, target, done=1, total=3)
    launch.run(target, QUICK, "accuracy", threads=1, on_beat=watched)
    images = [(done, total) for done, total, unit, _ in progress.seen if unit == "images"]
    assert images == [(done, 24) for done in range(0, 25, 2)]
    progress.seen.clear()
    launch.run(
        target, QUICK, "latency", threads=1, batch=4, on_beat=lambda beat: watched(beat, batch=4, threads=1)
    )
    timed = {figures["phase"]: figures for _, _, unit, figures in progress.seen if unit == "%"}
    assert {"warm-up", "sampling"} <= set(timed)
    for figures in timed.values():
        assert figures["target"] == "student/slow-fp32"
        assert (figures["batch"], figures["threads"], figures["of"]) == (4, 1, "2/3 targets")
        assert figures["eta_s"] >= 0.0


def test_the_second_of_two_in_turns_starts_when_the_first_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = slow_runtime.subject(tmp_path, monkeypatch, call_s=0.002)
    real = subprocess.Popen
    before: list[int] = []

    def popen(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        events = first.folder / "events.txt"
        before.append(len(slow_runtime.events(first)) if events.exists() else 0)
        return real(*words, **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    turns.run(first, first, QUICK.model_copy(update={"compare_launches": 1}), batch=1, threads=1)
    assert before[0] == 0
    assert before[1] > WARMUP_CALLS, "the first has loaded and made its warm-up calls by then"
    done = slow_runtime.events(first)
    loads = [index for index, (_, what) in enumerate(done) if what == "load"]
    first_pid, second_pid = (done[index][0] for index in loads)
    assert {pid for pid, _ in done[: loads[1]]} == {first_pid}
    warming = [pid for pid, _ in takewhile(lambda event: event[0] == second_pid, done[loads[1] :])]
    assert len(warming) > WARMUP_CALLS, "the first waits while the second does the same"


def test_turns_that_cannot_start_the_second_end_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = slow_runtime.subject(tmp_path, monkeypatch)
    real = subprocess.Popen
    processes: list[subprocess.Popen[bytes]] = []

    def popen(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        if processes:
            raise OSError(12, os.strerror(12))
        processes.append(real(*words, **more))
        return processes[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with raises(StageError, what="cannot be started") as caught:
        turns.run(target, target, QUICK, batch=1, threads=1)
    assert os.strerror(12) in caught.value.why
    assert processes[0].poll() is not None


def test_a_target_that_hangs_in_its_turn_is_ended_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good = slow_runtime.subject(tmp_path / "good", monkeypatch, call_s=0.005)
    bad = slow_runtime.subject(tmp_path / "bad", monkeypatch, call_s=0.005, hang="call 25")
    bad = replace(bad, target={**bad.target, "target": "bad-fp32"})
    with raises(StageError, what="measuring bad-fp32 hung") as caught:
        turns.run(good, bad, QUICK, batch=1, threads=1, silence=Silence(3.0, 6.0))
    assert "rounds in turns" in caught.value.why
    assert not workers_left(tmp_path)


def test_turns_say_how_many_rounds_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = slow_runtime.subject(tmp_path, monkeypatch)
    turns_done: list[tuple[int, int]] = []
    turns.run(target, target, QUICK, batch=1, threads=1, on_turn=lambda *counts: turns_done.append(counts))
    assert turns_done == [(done, 8) for done in range(1, 9)]
