from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from pipeline.errors import ModelError
from stages.methods.fbt import TAU_RANGE, Fbt
from stages.methods.observed import ObservedTeacher
from stages.methods.settings import FbtSettings
from stages.models.create import create
from stages.models.features import Features
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises
from tests.stages.methods import made, reference_unlike

Sizes = list[tuple[int, int, int]]

PAIRS: dict[str, tuple[Sizes, Sizes]] = {
    "as many": ([(3, 8, 8), (4, 4, 4), (5, 2, 2)], [(6, 9, 8), (8, 4, 4), (7, 2, 2)]),
    "teacher has more": ([(4, 6, 4), (5, 2, 2)], [(4, 8, 8), (6, 8, 8), (6, 5, 3), (8, 4, 4)]),
    "student has more": ([(3, 8, 8), (4, 3, 3), (5, 2, 2)], [(7, 4, 5), (8, 2, 3)]),
}


def pair(name: str, images: int = 3) -> tuple[Features, Features]:
    student, teacher = PAIRS[name]
    return made.of_ends(student, images, 1), made.of_ends(teacher, images, 20)


def method(student: Features, teacher: Features, **keys: Any) -> Fbt:
    torch.manual_seed(1)
    return Fbt(made.spec(student), made.spec(teacher), **keys)


def loss(made_method: Fbt, student: Features, teacher: Features) -> Tensor:
    head = made.head(teacher.map.shape[1], 20)
    value: Tensor = made_method(
        student, teacher, made.batch(made.labels(len(student.map)), head, shown=teacher)
    )
    return value


def expected(made_method: Fbt, student: Features, teacher: Features, **keys: Any) -> float:
    """The equation; in the teacher of `made` a changed map shifts the last by the mean of the change."""
    settings, double = FbtSettings(name="fbt", **keys), copy.deepcopy(made_method).double()
    labels = made.labels(len(student.map)).tolist()
    convolution, blocks = double.fusion[1:]
    height, width = teacher.ends[-2].shape[-2:]
    stretched = reference_unlike.stretched(student.ends[-2].double(), (height, width))
    fused = blocks(convolution(stretched)).detach()
    shift = (fused - teacher.ends[-2].double()).mean((1, 2, 3), keepdim=True)
    pooled = {
        "S": student.map.double().mean((2, 3)),
        "T": teacher.map.double().mean((2, 3)),
        "F": (teacher.ends[-1].double() + shift).mean((2, 3)),
    }
    head = copy.deepcopy(made.head(teacher.map.shape[1], 20)).double()
    logits = {"S": student.logits, "T": teacher.logits, "F": head(pooled["F"]).detach()}
    total = 0.0
    for i, j in (("T", "S"), ("T", "F"), ("F", "S")):
        answers = reference_unlike.ofa(logits[j], logits[i], labels, settings.eps, settings.form)
        total += settings.lambda_logits * answers
        if double.contrast is not None:
            anchors = pooled[j]
            if j == "S":
                anchors = anchors @ double.contrast.projector.weight.T + double.contrast.projector.bias
            vectors = anchors.detach().tolist(), pooled[i].detach().tolist()
            total += settings.lambda_contrast * reference_unlike.info_nce(*vectors, settings.tau)
    return total


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"form": "paper", "eps": 1.3, "tau": 0.5},
        {"lambda_contrast": 0.0, "lambda_logits": 2.0},
        {"lambda_logits": 0.0, "lambda_contrast": 0.4, "heads": 3},
    ],
    ids=str,
)
def test_agrees_with_the_equation(name: str, keys: dict[str, Any]) -> None:
    student, teacher = pair(name)
    made_method = method(student, teacher, **keys)
    found = loss(made_method, student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected(made_method, student, teacher, **keys), rel=1e-4)


def test_what_teaches_carries_no_gradient() -> None:
    # F learns from T alone: whatever the student's last stage and answers are, F's gradient is the same.
    gradients = []
    for seed in (1, 2):
        student, teacher = pair("as many")
        other = made.of_ends(PAIRS["as many"][0], 3, seed)
        student = replace(student, map=other.map, logits=other.logits)
        made_method = method(student, teacher)
        loss(made_method, student, teacher).backward()
        gradients.append([parameter.grad for parameter in made_method.fusion.parameters()])
    for one, another in zip(*gradients, strict=True):
        assert one is not None
        assert one.abs().sum() > 0
        assert another is not None
        assert torch.allclose(one, another, atol=1e-6)


def test_the_student_s_stages_learn_through_the_fused_network() -> None:
    student, teacher = pair("as many")
    student.ends[-2].requires_grad_()
    loss(method(student, teacher), student, teacher).backward()
    assert student.ends[-2].grad is not None
    assert student.ends[-2].grad.abs().sum() > 0


def test_the_learned_temperature_stays_in_its_range_and_still_learns() -> None:
    student, teacher = pair("as many")
    made_method = method(student, teacher)
    assert made_method.contrast is not None
    log_tau = made_method.contrast.log_tau
    for start, bound in ((-9.0, TAU_RANGE[0]), (3.0, TAU_RANGE[1])):
        log_tau.data.fill_(start)
        loss(made_method, student, teacher).backward()
        assert log_tau.item() == pytest.approx(math.log(bound))
        assert log_tau.grad is not None
        assert log_tau.grad.abs() > 0
        made_method.zero_grad()


def test_an_optimiser_brings_the_loss_down() -> None:
    torch.manual_seed(0)
    student, teacher = pair("as many", images=12)
    made_method = method(student, teacher)
    optimizer = torch.optim.Adam(made_method.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(made_method, student, teacher)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_resnet"])
def test_the_fused_network_ends_in_the_teacher_s_last_stage(architecture: str) -> None:
    torch.manual_seed(0)
    size = 160 if architecture == "test_vit" else 64
    facts = {"classes": 5, "channels": 3, "image_size": size}
    ours = Observer(create(ModelSettings(model="test_efficientnet"), **facts), Fbt.needs())
    network = create(ModelSettings(model=architecture), **facts).requires_grad_(False).eval()
    theirs = Observer(network, Fbt.needs())
    made_method = Fbt(ours.spec(size, 3), theirs.spec(size, 3))
    images = made.maps(2, 3, size, size)
    student = ours(images)
    with torch.no_grad():
        teacher = theirs(images)
    batch = replace(made.batch(made.labels(2)), teacher=ObservedTeacher(theirs, images))
    made_method(student, teacher, batch).backward()
    for name, parameter in made_method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in network.parameters())
    learnt = [parameter.grad for parameter in made_method.fusion.parameters() if parameter.grad is not None]
    assert sum(gradient.abs().sum().item() for gradient in learnt) > 0.0


def test_what_cannot_be_fused_is_refused() -> None:
    one = made.features(made.maps(2, 4, 4, 4), ends=(made.maps(2, 4, 4, 4),))
    with raises(ModelError, what="fbt needs a teacher with at least 2 stage ends"):
        method(pair("as many")[0], one)


def test_both_weights_at_0_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="would do nothing"):
        FbtSettings(name="fbt", lambda_contrast=0.0, lambda_logits=0.0)
