"""The distillation losses on CUDA: the CPU's values, and never a wait for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stages.models.features import Features
from tests.stages.methods import made
from tests.stages.methods.test_msdcrd import SWITCHES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def waiting_forbidden() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def moved(seen: Features) -> Features:
    return Features(seen.logits.cuda(), seen.embedding.cuda(), seen.map.cuda())


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
def test_the_step_agrees_with_the_cpu_and_never_waits(keys: dict[str, Any], waiting_forbidden: None) -> None:
    student, teacher = made.features(made.maps(8, 12, 4, 4)), made.features(made.maps(8, 20, 8, 8, seed=2))
    labels, head = made.labels(8), made.head(20)
    method = made.method(student, teacher, learn_tau=True, **keys)
    expected = method(student, teacher, made.batch(labels, head))
    student, teacher, labels, head, method = (
        moved(student),
        moved(teacher),
        labels.cuda(),
        head.cuda(),
        method.cuda(),
    )
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision is torch.bfloat16):
            method(student, teacher, made.batch(labels, head)).backward()  # libraries are loaded here
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            loss = method(student, teacher, made.batch(labels, head))
            loss.backward()
            torch.cuda.set_sync_debug_mode("default")
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
