from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies

from stages.methods.kd import Kd, kd_loss, standardized_logits
from stages.models.features import Features
from tests.stages.methods import made, reference, reference_logits


def pair() -> tuple[Features, Features]:
    return made.features(made.maps(3, 4, 2, 2, seed=1)), made.features(made.maps(3, 6, 2, 2, seed=2))


def method(seen: tuple[Features, Features], temperature: float, standardise: bool = False) -> Kd:
    return Kd(
        made.spec(seen[0]), made.spec(seen[1]), temperature=temperature, logit_standardisation=standardise
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_agrees_with_the_equation(temperature: float) -> None:
    seen = pair()
    made_method = method(seen, temperature)
    found = made_method(*seen, made.batch(made.labels(3))).item()
    assert found == pytest.approx(reference.kd(seen[0].logits, seen[1].logits, temperature), rel=1e-5)
    assert list(made_method.parameters()) == []


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardised_logits_agree_with_the_equation(temperature: float) -> None:
    seen = pair()
    found = method(seen, temperature, standardise=True)(*seen, made.batch(made.labels(3))).item()
    both = [[reference_logits.standardised(row) for row in reference_logits.rows(one.logits)] for one in seen]
    losses = [reference_logits.kd(ours, theirs, temperature) for ours, theirs in zip(*both, strict=True)]
    assert found == pytest.approx(sum(losses) / 3, rel=1e-5)


@given(scale=strategies.floats(0.1, 50.0), shift=strategies.floats(-50.0, 50.0))
def test_standardised_logits_forget_their_scale_and_their_mean(scale: float, shift: float) -> None:
    logits = made.maps(3, 5, 1, 1).flatten(1)
    assert torch.allclose(standardized_logits(scale * logits + shift), standardized_logits(logits), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 7.3, 99999.9])
def test_equal_logits_cannot_be_standardised_and_take_no_gradient(value: float) -> None:
    student = torch.full((2, 1000), value).requires_grad_()
    loss = kd_loss(
        standardized_logits(student), standardized_logits(made.maps(2, 1000, 1, 1).flatten(1)), 2.0
    )
    loss.backward()
    assert torch.equal(standardized_logits(student), torch.zeros(2, 1000))
    assert loss.item() > 0.0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(2, 1000))


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
