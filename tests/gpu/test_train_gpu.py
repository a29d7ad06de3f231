"""Training on a CUDA device: precision, agreement with the CPU, no wait inside a step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import distill, evaluate, train
from stages.training import fabric
from stages.training.settings import ComputeSettings
from tests.stages.training import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_the_whole_path_on_the_gpu(tmp_path: Path, precision: str) -> None:
    compute = {"device": "cuda", "precision": precision}
    recipe: dict[str, Any] = {"fraction": 1.0, "epochs": 6, "clip_grad": 1.0, "ema": 0.9}
    teacher = tiny.context(tmp_path / "train", tiny.settings("train", compute=compute, train=recipe))
    metrics = train.run(teacher)
    assert metrics["device"] == "cuda:0"
    assert metrics["val_top1"] > 80.0
    inputs = {"train": teacher.output}
    settings = tiny.settings(
        "distill",
        compute=compute,
        distill={**recipe, "baseline": True, "augment": {"pad": 1, "cutmix": 0.5, "rotate_deg": 5.0}},
    )
    student = tiny.context(tmp_path / "distill", settings, inputs=inputs)
    distill.run(student)
    inputs["distill"] = student.output
    figures = []
    for device in ("cuda", "cpu"):
        judged = tiny.context(
            tmp_path / device, tiny.settings("evaluate", compute={"device": device}), inputs=inputs
        )
        evaluate.run(judged)
        figures.append(json.loads((judged.output / "metrics.json").read_text()))
    # Float32 without TF32 on both: the same figures but for the order of sums.
    for role in ("teacher", "student", "baseline"):
        assert figures[0][role]["loss"] == pytest.approx(figures[1][role]["loss"], abs=1e-3)
        assert figures[0][role]["top1"] == pytest.approx(figures[1][role]["top1"], abs=0.6)


def test_auto_is_bf16_where_it_is_native() -> None:
    compute = fabric.resolve(ComputeSettings(device="cuda"))
    native = torch.cuda.get_device_capability(0)[0] >= 8
    assert compute.precision == ("bf16" if native else "fp32")


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """CUDA's own watch on synchronising calls: their number must not grow with the steps."""
    counts = []
    for nth, fraction in enumerate((0.1, 0.6)):
        settings = tiny.settings(
            "train",
            compute={"device": "cuda", "precision": "bf16"},
            train={"fraction": fraction, "epochs": 2, "augment": {"pad": 1, "flip": True, "mixup": 0.2}},
        )
        context = tiny.context(tmp_path / str(nth), settings)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                train.run(context)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(one.message) for one in warned))
    assert counts[1] <= counts[0] + 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_together(tmp_path: Path) -> None:
    compute = {"device": "cuda", "devices": 2}
    metrics = train.run(tiny.context(tmp_path, tiny.settings("train", compute=compute)))
    assert metrics["device"] == "2 x cuda"
