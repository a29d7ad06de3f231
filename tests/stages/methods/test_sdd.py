from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import ModelError
from stages.data.preprocessing import Preprocessing
from stages.methods.sdd import Sdd
from stages.methods.settings import SddSettings
from stages.models.create import create
from stages.models.features import Features
from stages.models.settings import ModelSettings
from stages.training.tasks import Distillation
from tests.errors import raises
from tests.stages.methods import made, reference, reference_logits

SHAPES = {
    "teacher larger": ((3, 4, 4, 4), (3, 6, 8, 8)),
    "not divisible": ((3, 4, 7, 7), (3, 6, 5, 5)),
    "not square": ((3, 4, 2, 5), (3, 6, 4, 7)),
    "one pixel": ((3, 4, 1, 1), (3, 6, 4, 4)),
}
SWITCHES: list[dict[str, Any]] = [
    {},
    {"inner": "dkd"},
    {"inner": "dkd", "alpha": 0.5, "beta": 2.0, "temperature": 1.0},
    {"grids": [1]},
    {"grids": [2, 3], "complementary_weight": 5.0},
]
LABELS = torch.tensor([0, 3, 1])


def pair(shape: str) -> tuple[Features, Features]:
    student, teacher = SHAPES[shape]
    return made.features(3.0 * made.maps(*student, seed=1)), made.features(3.0 * made.maps(*teacher, seed=2))


def made_method(seen: tuple[Features, Features], **keys: Any) -> Sdd:
    return Sdd(made.spec(seen[0]), made.spec(seen[1]), **keys)


def loss(seen: tuple[Features, Features], labels: Tensor = LABELS, **keys: Any) -> Tensor:
    batch = made.batch(labels, made.head(seen[1].map.shape[1]))
    value: Tensor = made_method(seen, **keys)(*seen, batch)
    return value


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_equation(shape: str, keys: dict[str, Any]) -> None:
    student, teacher = seen = pair(shape)
    heads = [reference.module(made.head(one.map.shape[1])) for one in seen]
    judge = reference.Judge(teacher.map, teacher.logits, heads[1])
    settings = SddSettings(name="sdd", **keys)
    expected = reference_logits.sdd(settings, student.map, heads[0], judge, LABELS.tolist())
    assert loss(seen, **keys).item() == pytest.approx(expected, rel=1e-4)


def test_both_weights_occur() -> None:
    # Otherwise the comparison with the equation would say nothing of them.
    seen = pair("teacher larger")
    once, nothing = loss(seen, complementary_weight=1.0).item(), loss(seen, complementary_weight=0.0).item()
    assert 0.0 < nothing < once
    assert loss(seen).item() == pytest.approx(2 * once - nothing, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_the_mean_of_the_parts_is_the_network_s_own_logit(shape: str, grid: int) -> None:
    for seen, pool in zip(pair(shape), (m := made_method(pair(shape), grids=[grid])).children(), strict=True):
        local = made.head(seen.map.shape[1])(pool(seen.map))
        assert torch.allclose(local.mean(1), seen.logits, atol=1e-5)
    assert list(m.parameters()) == []


def test_one_part_is_plain_kd() -> None:
    student, teacher = seen = pair("not divisible")
    expected = reference.kd(student.logits, teacher.logits, 4.0)
    assert loss(seen, grids=[1]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_whose_head_cannot_judge_parts_is_refused(role: str) -> None:
    specs = {
        key: made.spec(seen) for key, seen in zip(("student", "teacher"), pair("one pixel"), strict=True)
    }
    specs[role] = dataclasses.replace(specs[role], head_is_linear_on_pooled=False)
    with raises(ModelError, what=f"with this {role}"):
        Sdd(specs["student"], specs["teacher"])


def test_the_student_s_own_classifier_learns_and_the_teacher_s_does_not() -> None:
    torch.manual_seed(0)
    keys = {"classes": 5, "channels": 3, "image_size": 32}
    student, teacher = (
        create(ModelSettings(model=f"test_{kind}"), **keys) for kind in ("efficientnet", "resnet")
    )
    facts = Preprocessing(32, 3, "bilinear", True, 1 / 255, (0.5,) * 3, (0.25,) * 3)
    labels = torch.tensor([0, 1, 2, 3])
    task = Distillation(
        student, teacher, [SddSettings(name="sdd")], (facts, facts), label_weight=1.0, labels=labels
    )
    images = made.maps(4, 3, 32, 32)
    _, losses = task(labels, torch.arange(4), images, images)
    losses[0].backward()
    classifier = student.get_submodule("classifier")
    assert isinstance(classifier, torch.nn.Linear)
    assert classifier.weight.grad is not None
    assert classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        SddSettings(name="sdd", grids=[0, 2])
    with pytest.raises(ValidationError, match="do nothing"):
        SddSettings(name="sdd", inner="dkd", alpha=0.0, beta=0.0)
