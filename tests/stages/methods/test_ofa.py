from __future__ import annotations

import math
from typing import Any, Literal, cast

import pytest
import torch

from stages.methods.ofa import Ofa, ofa_loss, ofa_targets
from stages.methods.parts.map_transformer import MapTransformer
from stages.methods.settings import OfaSettings
from stages.models.features import Features
from tests.stages.methods import made, reference_unlike

Sizes = list[tuple[int, int, int]]

SHRINKING: Sizes = [(3, 16, 16), (4, 8, 8), (6, 4, 4), (8, 2, 2)]
TOKENS: Sizes = [(8, 4, 4)] * 4


def shown(sizes: Sizes, images: int = 3, seed: int = 0) -> Features:
    ends = tuple(made.maps(images, *size, seed=seed + n) for n, size in enumerate(sizes))
    return made.features(ends[-1], ends=ends)


def method(student: Features, teacher: Features, **keys: Any) -> Ofa:
    torch.manual_seed(1)
    return Ofa(made.spec(student), made.spec(teacher), **keys)


def teacher(images: int = 3) -> Features:
    return made.features(made.maps(images, 10, 4, 4, seed=9))


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("eps", [0.5, 1.0, 1.4, 2.0])
def test_the_loss_agrees_with_the_equation(form: Literal["code", "paper"], eps: float) -> None:
    student, theirs, labels = torch.randn(4, 7), 3 * torch.randn(4, 7), torch.tensor([0, 6, 2, 2])
    found = ofa_loss(student, ofa_targets(theirs, labels, eps, form))
    assert found.dtype == torch.float32
    expected = reference_unlike.ofa(student, theirs, labels.tolist(), eps, form)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    # The teacher is sure by 3/4, the student undecided between two classes; the label is the first.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    label = torch.tensor([0])
    code = ofa_loss(student, ofa_targets(teacher, label, 2.0, "code")).item()
    assert code == pytest.approx((1.75**2 - 1 + 0.25**2) * math.log(2))
    paper = ofa_loss(student, ofa_targets(teacher, label, 2.0, "paper")).item()
    assert paper == pytest.approx((1.75**2 + 0.25) * math.log(2))


def test_at_eps_1_the_code_is_cross_entropy_with_the_teacher_s_answers() -> None:
    student, theirs = torch.randn(4, 7), torch.randn(4, 7)
    found = ofa_loss(student, ofa_targets(theirs, torch.tensor([0, 1, 2, 3]), 1.0, "code"))
    expected = torch.nn.functional.cross_entropy(student, theirs.softmax(1))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_confident_networks_in_half_precision() -> None:
    student = (torch.eye(3) * 60000).half().requires_grad_()
    loss = ofa_loss(student, ofa_targets(-student, torch.arange(3), 1.5, "code"))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("sizes", [SHRINKING, SHRINKING[1:], SHRINKING[2:], TOKENS], ids=str)
@pytest.mark.parametrize(
    "keys", [{}, {"eps": 1.5, "branches": 2}, {"form": "paper"}, {"branches": 0}], ids=str
)
def test_the_logits_and_every_branch_learn_the_teacher_s_answer(sizes: Sizes, keys: dict[str, Any]) -> None:
    student, theirs, labels = shown(sizes), teacher(), made.labels(3)
    made_method = method(student, theirs, **keys)
    found = made_method(student, theirs, made.batch(labels)).item()
    settings = OfaSettings(name="ofa", **keys)
    answers = [student.logits]
    for end, branch in zip(reversed(student.ends), reversed(made_method.branches), strict=False):
        answers.append(branch(end).detach())
    assert len(answers) == 1 + min(settings.branches, len(sizes))
    expected = sum(
        reference_unlike.ofa(answer, theirs.logits, labels.tolist(), settings.eps, settings.form)
        for answer in answers
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_branches_halve_shrinking_maps_down_to_the_deepest() -> None:
    student, theirs = shown(SHRINKING), teacher()
    made_method = method(student, theirs)
    for number, (end, branch) in enumerate(zip(student.ends, made_method.branches, strict=True)):
        strides = [layer.stride for layer in branch.modules() if isinstance(layer, torch.nn.Conv2d)]
        assert strides.count((2, 2)) == 3 - number
        final = cast(torch.nn.Sequential, branch)[:-1](end)
        # As wide as the wider of both networks' pooled vectors.
        assert final.shape == (3, 10, 2, 2)


def test_maps_of_one_size_are_tokens() -> None:
    branches = method(shown(TOKENS), teacher()).branches
    counts = [
        sum(len(part.blocks) for part in branch.modules() if isinstance(part, MapTransformer))
        for branch in branches
    ]
    assert counts == [3, 2, 1, 1]


@pytest.mark.parametrize(
    ("grid", "merged"), [((4, 4), (4, 4)), ((14, 14), (7, 7)), ((15, 28), (8, 14)), ((28, 30), (7, 8))]
)
def test_patches_are_merged_down_to_a_small_grid(grid: tuple[int, int], merged: tuple[int, int]) -> None:
    student = shown([(8, *grid)] * 2, images=1)
    branch = cast(torch.nn.Sequential, method(student, teacher(1)).branches[0])
    assert branch[:-1](student.ends[0]).shape == (1, 8, *merged)


def test_without_branches_it_needs_no_maps() -> None:
    assert not Ofa.needs(branches=0).ends
    assert Ofa.needs(branches=1).ends


def test_the_teacher_gets_no_gradient() -> None:
    student, maps = shown(SHRINKING), made.maps(3, 10, 4, 4).requires_grad_()
    theirs = made.features(maps)
    method(student, theirs)(student, theirs, made.batch(made.labels(3))).backward()
    assert maps.grad is None
