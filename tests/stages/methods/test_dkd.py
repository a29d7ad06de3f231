from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.methods.dkd import Dkd, dkd_losses
from stages.methods.kd import kd_losses
from stages.methods.settings import DkdSettings
from tests.stages.methods import made, reference_logits

LABELS = torch.tensor([1, 4, 0])


def logits(seed: int, scale: float = 1.0) -> Tensor:
    return scale * made.maps(3, made.CLASSES, 1, 1, seed).flatten(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
def test_agrees_with_the_equation(alpha: float, beta: float, temperature: float) -> None:
    student, teacher = made.features(made.maps(3, 4, 2, 2, 1)), made.features(made.maps(3, 6, 2, 2, 2))
    method = Dkd(made.spec(student), made.spec(teacher), alpha=alpha, beta=beta, temperature=temperature)
    ours, theirs = reference_logits.rows(student.logits), reference_logits.rows(teacher.logits)
    expected = [
        reference_logits.dkd(ours[i], theirs[i], label, alpha, beta, temperature)
        for i, label in enumerate(LABELS.tolist())
    ]
    found = method(student, teacher, made.batch(LABELS)).item()
    assert found == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_two_classes_of_a_worked_example() -> None:
    # Teacher (1/2, 1/4, 1/4), student uniform, class 0: the others are alike already.
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    binary = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 3 / 2)
    label = torch.tensor([0])
    assert dkd_losses(torch.zeros(1, 3), teacher, label, 1.0, 0.0, 1.0).item() == pytest.approx(binary)
    assert dkd_losses(torch.zeros(1, 3), teacher, label, 0.0, 1.0, 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_both_parts_put_together_as_kd_does_are_kd() -> None:
    student, teacher, temperature = logits(1, 3.0), logits(2, 3.0), 2.0
    target = (teacher / temperature).softmax(1)[torch.arange(3), LABELS]
    binary = dkd_losses(student, teacher, LABELS, 1.0, 0.0, temperature)
    others = dkd_losses(student, teacher, LABELS, 0.0, 1.0, temperature)
    expected = kd_losses(student, teacher, temperature)
    assert torch.allclose(binary + (1.0 - target) * others, expected, rtol=1e-5)


def test_exact_where_logits_are_in_the_thousands() -> None:
    # Taking a fixed number off the true class's logit would leave it in among the others here.
    student = torch.tensor([[5000.0, 1.0, 3.0, 2.0]])
    teacher = torch.tensor([[4000.0, 2.0, 1.0, 3.0]])
    found = dkd_losses(student, teacher, torch.tensor([0]), 0.0, 1.0, 1.0).item()
    expected = reference_logits.kd([1.0, 3.0, 2.0], [2.0, 1.0, 3.0], 1.0)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_finite_for_confident_networks_in_half_precision(label: int) -> None:
    student = torch.tensor([[60000.0, 0.0, -60000.0]]).half().requires_grad_()
    teacher = torch.tensor([[-60000.0, 0.0, 60000.0]]).half().requires_grad_()
    loss = dkd_losses(student, teacher, torch.tensor([label]), 1.0, 8.0, 1.0).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="do nothing"):
        DkdSettings(name="dkd", alpha=0.0, beta=0.0)
