from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.methods.mlkd import Mlkd
from stages.methods.settings import MlkdSettings
from stages.models.features import Features
from tests.stages.methods import made, reference_logits


def shown(logits: Tensor) -> Features:
    return Features(logits, logits, logits[:, :, None, None])


def loss(student: Tensor, teacher: Tensor, temperatures: list[float], weights: tuple[float, ...]) -> Tensor:
    names = ("instance_weight", "batch_weight", "class_weight")
    keys = dict(zip(names, weights, strict=True))
    spec = made.spec(shown(student))
    method = Mlkd(spec, spec, temperatures=temperatures, **keys)
    value: Tensor = method(shown(student), shown(teacher), made.batch(made.labels(len(student))))
    return value


def logits(images: int, seed: int) -> Tensor:
    return 3.0 * made.maps(images, made.CLASSES, 1, 1, seed).flatten(1)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("temperatures", [[1.0], [2.0, 3.0, 4.0, 5.0, 6.0]])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)])
def test_agrees_with_the_equation(
    images: int, temperatures: list[float], weights: tuple[float, float, float]
) -> None:
    student, teacher = logits(images, 1), logits(images, 2)
    ours, theirs = reference_logits.rows(student), reference_logits.rows(teacher)
    expected = reference_logits.mlkd(ours, theirs, temperatures, *weights)
    assert loss(student, teacher, temperatures, weights).item() == pytest.approx(expected, rel=1e-4)


def test_two_certain_images_by_hand() -> None:
    # The teacher takes two images for two classes, the student both for the first. |PPt - QQt|^2 = 2 (the
    # two places off the diagonal), |PtP - QtQ|^2 = (1 - 2)^2 + (1 - 0)^2 = 2 of two classes.
    teacher = 1000.0 * torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    student = 1000.0 * torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert loss(student, teacher, [1.0], (0.0, 1.0, 0.0)).item() == pytest.approx(2 / 2)
    assert loss(student, teacher, [1.0], (0.0, 0.0, 1.0)).item() == pytest.approx(2 / 2)


def test_equal_networks_lose_nothing() -> None:
    assert loss(logits(4, 1), logits(4, 1), [2.0, 4.0], (1.0, 1.0, 1.0)).item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_finite_for_confident_networks_in_half_precision() -> None:
    student = (torch.eye(3) * 60000).half().requires_grad_()
    loss(student, (torch.eye(3).flip(0) * 60000).half(), [1.0, 2.0], (1.0, 1.0, 1.0)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"temperatures": []}, "at least 1"),
        ({"temperatures": [2.0, 0.0]}, "above 0"),
        ({"instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 0.0}, "do nothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(keys: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        MlkdSettings.model_validate({"name": "mlkd", **keys})
