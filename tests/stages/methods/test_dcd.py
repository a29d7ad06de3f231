from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.methods.dcd import Dcd
from stages.methods.settings import DcdSettings
from stages.models.features import Features
from stages.training.optimizers import create_optimizer
from tests.stages.methods import made
from tests.stages.methods.reference import Vector, dot, module, softmax, unit

SWITCHES: list[dict[str, Any]] = [
    {},
    {"scale": 1.0, "learn_scale": False},
    {"scale": 30.0, "max_scale": 40.0},
    {"consistency_weight": 0.0},
    {"consistency_weight": 2.0, "feat_dim": 3},
    {"symmetric": True},
    {"symmetric": True, "consistency_weight": 0.0},
    {"bias": True, "detach_consistency_target": True, "weight_decay_on_scale": False},
]


def pair(images: int = 4) -> tuple[Features, Features]:
    return made.features(made.maps(images, 5, 2, 2, seed=1)), made.features(
        made.maps(images, 7, 2, 2, seed=2)
    )


def dcd(**keys: Any) -> Dcd:
    student, teacher = pair()
    torch.manual_seed(1)
    return Dcd(made.spec(student), made.spec(teacher), **keys)


def loss(method: Dcd, student: Features, teacher: Features) -> Tensor:
    return method(student, teacher, made.batch(made.labels(len(student.logits))))


def by_hand(scores: list[Vector], consistency: float, symmetric: bool) -> float:
    """The loss of a matrix of scores, student's images down, teacher's across."""
    images = range(len(scores))
    rows = [softmax(row) for row in scores]
    columns = [softmax([scores[i][j] for i in images]) for j in images]
    contrast = sum(-math.log(rows[i][i]) for i in images) / len(scores)
    if symmetric:
        contrast += sum(-math.log(columns[i][i]) for i in images) / len(scores)
    divergence = 0.0
    for i in images:
        # Row i of the transposed column softmax: image j's share of column i.
        divergence += sum(columns[i][j] * math.log(columns[i][j] / rows[i][j]) for j in images)
    return contrast + consistency * divergence / len(scores)


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
@pytest.mark.parametrize("images", [1, 2, 4])
def test_agrees_with_the_equations(images: int, keys: dict[str, Any]) -> None:
    student, teacher = pair(images)
    method = dcd(**keys)
    s = [unit(module(method.student_projector)(v)) for v in student.embedding.tolist()]
    t = [unit(module(method.teacher_projector)(v)) for v in teacher.embedding.tolist()]
    factor = min(method.scale, method.max_scale)
    scores = [[factor * dot(a, b) for b in t] for a in s]
    expected = by_hand(scores, method.consistency_weight, method.symmetric)
    assert loss(method, student, teacher).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_case_worked_out_by_hand() -> None:
    # Cosines: student 1 sees teacher 1, student 2 sees teacher 2, student 3 sees teacher 1 as well.
    # With factor ln 4, exp(L) is [[4, 1, 1], [1, 4, 1], [4, 1, 1]]; rows are divided by 6, columns by 9, 6
    # and 3. Row cross-entropy: (2 ln 3/2 + ln 6) / 3.
    method = dcd(scale=math.log(4.0), feat_dim=3, consistency_weight=1.0)
    one, two, three = torch.eye(3)
    for projector in (method.student_projector, method.teacher_projector):
        projector.weight.data = torch.eye(3)
        projector.bias.data.zero_()
    student, teacher = pair(3)
    student.embedding, teacher.embedding = torch.stack([one, two, one]), torch.stack([one, two, three])
    contrast = (2 * math.log(6 / 4) + math.log(6)) / 3
    first = 4 / 9 * math.log(4 / 9 / (4 / 6)) + 1 / 9 * math.log(1 / 9 / (1 / 6))
    first += 4 / 9 * math.log(4 / 9 / (1 / 6))
    second = 0.0  # both are [1/6, 4/6, 1/6]
    third = 1 / 3 * math.log(1 / 3 / (4 / 6)) + 2 * (1 / 3 * math.log(1 / 3 / (1 / 6)))
    consistency = (first + second + third) / 3
    assert loss(method, student, teacher).item() == pytest.approx(contrast + consistency, rel=1e-5)


def test_the_published_numbers_are_the_defaults() -> None:
    method = dcd()
    assert method.log_scale is not None
    assert method.log_scale.item() == 1.0
    assert (method.student_projector.out_features, method.max_scale) == (128, 10.0)
    assert method.consistency_weight == 0.5
    assert method.offset is None


def test_the_constant_changes_nothing() -> None:
    method = dcd(bias=True, symmetric=True)
    assert method.offset is not None
    values = []
    for constant in (0.0, 3.0, -5.0):
        method.offset.data.fill_(constant)
        method.zero_grad()
        value = loss(method, *pair())
        value.backward()
        values.append(value.item())
        assert method.offset.grad is not None
        assert method.offset.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_the_learned_factor_is_cut_off_and_has_no_gradient_above() -> None:
    method = dcd(weight_decay_on_scale=False)
    assert method.log_scale is not None
    at_bound = dcd(learn_scale=False, scale=10.0)
    for start, learns in ((1.0, True), (2.0, True), (3.0, False), (100.0, False)):
        method.log_scale.data.fill_(start)
        method.zero_grad()
        value = loss(method, *pair())
        value.backward()
        assert method.log_scale.grad is not None
        assert (method.log_scale.grad != 0.0) == learns
        if not learns:
            assert value.item() == pytest.approx(loss(at_bound, *pair()).item(), rel=1e-6)


def test_both_projections_learn_and_the_teacher_does_not() -> None:
    student, teacher = pair()
    teacher.embedding = teacher.embedding.clone().requires_grad_()
    method = dcd()
    loss(method, student, teacher).backward()
    assert teacher.embedding.grad is None
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_detached_target_moves_the_rows_alone() -> None:
    # With one teacher vector for all images a row of L is constant: its softmax cannot move.
    student, teacher = pair()
    teacher.embedding = teacher.embedding[:1].expand(4, -1)
    moved = []
    for detached in (False, True):
        vectors = student.embedding.detach().clone().requires_grad_()
        student.embedding = vectors
        method = dcd(detach_consistency_target=detached)
        loss(method, student, teacher).backward()
        assert vectors.grad is not None
        moved.append(vectors.grad.abs().max().item())
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6


@pytest.mark.parametrize("decays", [True, False])
def test_weight_decay_reaches_the_factor_only_if_asked(decays: bool) -> None:
    method = dcd(weight_decay_on_scale=decays)
    optimizer = create_optimizer(method, "sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.5)
    # Above the bound nothing but weight decay can move it.
    assert method.log_scale is not None
    method.log_scale.data.fill_(4.0)
    loss(method, *pair()).backward()
    optimizer.step()
    assert method.log_scale.item() == pytest.approx(4.0 * (1 - 0.1 * 0.5) if decays else 4.0)


def test_a_start_above_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot learn"):
        DcdSettings(name="dcd", scale=11.0)
    assert DcdSettings(name="dcd", scale=11.0, learn_scale=False).scale == 11.0
