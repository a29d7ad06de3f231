from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import MachineCannot, UsageError
from stages.training import fabric
from stages.training.settings import ComputeSettings
from tests.errors import raises
from tests.stages.training import tiny


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    compute = fabric.resolve(ComputeSettings())
    assert compute.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute.precision == ("bf16" if fabric.takes_bf16(compute.kind) else "fp32")
    assert compute.threads == fabric.available_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named_with_the_remedy() -> None:
    with pytest.raises(MachineCannot) as caught:
        fabric.resolve(ComputeSettings(device="cuda:1"))
    assert "cuda:1" in str(caught.value)
    assert "compute.device=auto" in caught.value.mend


def test_fp16_on_a_cpu_is_refused() -> None:
    with raises(UsageError, what="fp16 needs a CUDA device"):
        fabric.resolve(ComputeSettings(device="cpu", precision="fp16"))


def test_processes_share_the_cores() -> None:
    compute = fabric.resolve(ComputeSettings(device="cpu", devices=2, threads=4))
    assert compute.threads == 2


def test_bf16_is_mixed_precision_over_float32_weights() -> None:
    made = fabric.make(fabric.resolve(ComputeSettings(device="cpu", precision="bf16")))
    layer = made.setup(torch.nn.Linear(3, 3))
    assert layer.weight.dtype == torch.float32
    with made.autocast():
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
def test_two_processes_train_and_tell_as_one(tmp_path: Path) -> None:
    from stages import distill, train

    several = {"device": "cpu", "precision": "fp32", "devices": 2, "threads": 2}
    told = tiny.Recorder()
    one = tiny.context(tmp_path / "train", tiny.settings("train", compute=several), progress=told)
    metrics = train.run(one)
    assert metrics["device"] == "2 x cpu"
    assert (one.output / "model.safetensors").is_file()
    done, total, figures = told.updates[-1]
    assert done == total
    assert figures["epoch"] == 3
    two = tiny.context(
        tmp_path / "distill",
        tiny.settings("distill", compute=several, distill={"baseline": True}),
        inputs={"train": one.output},
    )
    assert distill.run(two)["best_epoch"] >= 1
    assert (two.output / "baseline" / "model.safetensors").is_file()


@pytest.mark.slow
def test_an_error_in_a_process_comes_back_as_it_is(tmp_path: Path) -> None:
    from pipeline.errors import StageError
    from stages import train

    wild = tiny.settings(
        "train",
        compute={"devices": 2},
        train={"learning_rate": 1e30, "optimizer": "sgd"},
    )
    with raises(StageError, why="diverged"):
        train.run(tiny.context(tmp_path, wild))
