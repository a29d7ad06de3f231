from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import machine
from pipeline.errors import EXIT_INTERRUPTED, MachineCannot, StageError, UsageError
from stages.training import fabric
from stages.training.settings import ComputeSettings
from tests.command import environment
from tests.errors import raises
from tests.stages.training import tiny, works


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    compute = fabric.resolve(ComputeSettings())
    assert compute.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute.precision == ("bf16" if fabric.takes_bf16(compute.kind) else "fp32")
    assert compute.threads == machine.usable_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named_with_the_remedy() -> None:
    with pytest.raises(MachineCannot) as caught:
        fabric.resolve(ComputeSettings(device="cuda:1"))
    assert "cuda:1" in str(caught.value)
    assert "compute.device=auto" in caught.value.hint


def test_fp16_on_a_cpu_is_refused() -> None:
    with raises(UsageError, what="fp16 needs a CUDA device"):
        fabric.resolve(ComputeSettings(device="cpu", precision="fp16"))


def test_processes_share_the_cores() -> None:
    compute = fabric.resolve(ComputeSettings(device="cpu", devices=2, threads=4))
    assert compute.threads == 2


def test_bf16_is_mixed_precision_over_float32_weights() -> None:
    created = fabric.make(fabric.resolve(ComputeSettings(device="cpu", precision="bf16")))
    layer = created.setup(torch.nn.Linear(3, 3))
    assert layer.weight.dtype == torch.float32
    with created.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 3), layer.weight).dtype == torch.bfloat16


def test_global_state_is_put_back_even_after_an_error() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    compute = fabric.resolve(ComputeSettings(device="cpu", threads=1))

    def disturb() -> None:
        with fabric.reproducible(compute, seed=0):
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        disturb()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_equal_seeds_draw_equal_numbers() -> None:
    compute = fabric.resolve(ComputeSettings(device="cpu", threads=1))
    drawn = []
    for seed in (1, 1, 2):
        with fabric.reproducible(compute, seed):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_two_processes_train_and_report_like_one(tmp_path: Path) -> None:
    from stages import distill, train

    several = {"device": "cpu", "precision": "fp32", "devices": 2, "threads": 2}
    recorder = tiny.Recorder()
    teacher = tiny.context(tmp_path / "train", tiny.settings("train", compute=several), progress=recorder)
    metrics = train.run(teacher)
    assert metrics["device"] == "2 x cpu"
    assert (teacher.output / "model.safetensors").is_file()
    done, total, figures = recorder.updates[-1]
    assert done == total
    assert figures["epoch"] == 3
    two = tiny.context(
        tmp_path / "distill",
        tiny.settings("distill", compute=several, distill={"baseline": True}),
        inputs={"train": teacher.output},
    )
    assert distill.run(two)["best_epoch"] >= 1
    assert (two.output / "baseline" / "model.safetensors").is_file()


@pytest.mark.slow
def test_each_process_has_running_statistics_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a warning of PyTorch, whose name for the setting has changed."""
    settings = tiny.settings("train", compute=works.TWO)
    assert fabric.launch(works.statistics_of_each, tiny.context(tmp_path, settings)) == {"means": [0.0, 0.75]}
    assert "`broadcast_buffers` is deprecated" not in capfd.readouterr().err


@pytest.mark.process
def test_a_training_that_diverges_is_refused_alike_by_one_process_and_by_two(tmp_path: Path) -> None:
    from stages import train

    errors = []
    for devices in (1, 2):
        wild = tiny.settings(
            "train",
            compute={"devices": devices},
            train={"learning_rate": 1e30, "optimizer": "sgd", "epochs": 2},
        )
        with raises(StageError, what="diverged") as caught:
            train.run(tiny.context(tmp_path / str(devices), wild))
        errors.append(caught.value.as_json())
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_an_error_of_the_second_process_alone_comes_back_as_it_is(tmp_path: Path) -> None:
    with raises(UsageError, what="Only the second process sees this") as caught:
        fabric.launch(
            works.refuse_in_the_second, tiny.context(tmp_path, tiny.settings("train", compute=works.TWO))
        )
    assert caught.value.where == "here"


@pytest.mark.slow
def test_a_reporter_that_raises_ends_the_processes(tmp_path: Path) -> None:
    context = tiny.context(
        tmp_path, tiny.settings("train", compute=works.TWO), progress=tiny.Recorder(stop_after=0)
    )
    with pytest.raises(tiny.Stopped):
        fabric.launch(works.report_without_end, context)
    assert not alive(context.work)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_an_interrupt_ends_every_process(tmp_path: Path, whole_group: bool) -> None:
    """Even while the terminal takes no progress any more, and the first process waits in mid-message."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.training.works", str(tmp_path)],
        env=environment(),
        start_new_session=True,
    )
    try:
        wait_for(lambda: (tmp_path / "stuck").exists() and len(list((tmp_path / "work").glob("*.pid"))) == 2)
        if whole_group:
            os.killpg(program.pid, signal.SIGINT)
        else:
            program.send_signal(signal.SIGINT)
        wait_for(lambda: program.poll() is not None)
        assert program.returncode == EXIT_INTERRUPTED
        wait_for(lambda: not alive(tmp_path / "work"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def alive(folder: Path) -> list[int]:
    """The processes that left their number in the folder and still run."""
    numbers = [int(file.read_text(encoding="ascii") or "0") for file in folder.glob("*.pid")]
    return [number for number in numbers if number and Path(f"/proc/{number}").exists()]


def wait_for(met: Callable[[], bool], limit_s: float = 250.0) -> None:
    end = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < end, "it does not come to an end"
        time.sleep(0.05)
