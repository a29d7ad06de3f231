"""What the fine-tune takes over from distill, and what it does not."""

from __future__ import annotations

import pytest
import torch

from stages.models import card as cards
from stages.quantization_aware.fine_tune import create_task
from stages.training.supply import Supply
from tests.stages.onnx_files.trained import digits
from tests.stages.quantization_aware import coarse


@pytest.mark.long
def test_a_methods_warm_up_is_over() -> None:
    context = coarse.context()
    (kd,) = context.settings.distill.methods
    context.settings.distill.methods[0] = kd.model_copy(update={"warmup_epochs": 20.0, "weight": 0.5})
    student, card = cards.load(context.inputs["distill"])
    training = Supply(digits().train, torch.device("cpu"))
    assert create_task(student, card.preprocessing, context, training).factors(0.0) == [0.5]
