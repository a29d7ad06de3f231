from __future__ import annotations

import pytest
import torch

from stages.methods.kd import Kd, kd_loss
from stages.methods.settings import KdSettings
from tests.stages.methods import made, reference


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_agrees_with_the_equation(temperature: float) -> None:
    student, teacher = made.maps(3, 4, 2, 2, seed=1), made.maps(3, 6, 2, 2, seed=2)
    seen = made.features(student), made.features(teacher)
    method = Kd(KdSettings(name="kd", temperature=temperature), made.spec(seen[0]), made.spec(seen[1]))
    found = method(*seen, made.labels(3)).item()
    assert found == pytest.approx(reference.kd(seen[0].logits, seen[1].logits, temperature), rel=1e-5)
    assert list(method.parameters()) == []


def test_equal_logits_lose_nothing() -> None:
    logits = torch.randn(4, 7)
    assert kd_loss(logits, logits, 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_the_temperature_leaves_the_gradient_s_scale() -> None:
    # For large T the gradient tends to (z_S - z_T) / classes, centred: it does not vanish.
    student = torch.randn(1, 5).requires_grad_()
    teacher = torch.randn(1, 5)
    kd_loss(student, teacher, 1000.0).backward()
    gap = student.detach() - teacher
    assert student.grad is not None
    assert torch.allclose(student.grad, (gap - gap.mean()) / 5, atol=1e-3)


def test_finite_for_confident_networks_in_half_precision() -> None:
    student = (torch.eye(3) * 60000).half().requires_grad_()
    teacher = (torch.eye(3).flip(0) * 60000).half()
    loss = kd_loss(student, teacher, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
