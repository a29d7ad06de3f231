"""The distillation losses on CUDA: the CPU's values, and never a wait for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stages.models.features import Features
from tests.stages.methods import made
from tests.stages.methods.test_every_method import by_name, case
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


DRAWING = {"crd"}
"""Methods that draw at random: another device draws otherwise."""


@by_name
def test_a_step_of_every_method_agrees_with_the_cpu_and_never_waits(
    name: str, waiting_forbidden: None
) -> None:
    expected = case(name).loss()
    on_gpu = case(name).on("cuda")
    state = {key: value.clone() for key, value in on_gpu.method.state_dict().items()}
    torch.manual_seed(11)
    on_gpu.method(*on_gpu.given()).backward()  # libraries are loaded here
    on_gpu.method.load_state_dict(state)
    given = on_gpu.given()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    loss = on_gpu.method(*given)
    loss.backward()
    torch.cuda.set_sync_debug_mode("default")
    if name not in DRAWING:
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)


@by_name
def test_a_step_of_every_method_under_bf16_on_the_gpu(name: str) -> None:
    on_gpu = case(name).on("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = on_gpu.loss()
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(leaf.grad).all() for leaf in on_gpu.leaves if leaf.grad is not None)
