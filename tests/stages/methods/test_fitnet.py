from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.fitnet import Fitnet
from stages.methods.settings import FitnetSettings
from stages.models.features import Features
from tests.errors import raises
from tests.stages.methods import made, reference_hints


def settings(**keys: Any) -> FitnetSettings:
    return FitnetSettings(name="fitnet", **keys)


def shown(*ends: Tensor) -> Features:
    return made.features(ends[-1], ends=ends)


def method(student: Features, teacher: Features, **keys: Any) -> Fitnet:
    torch.manual_seed(3)
    return Fitnet(made.spec(student), made.spec(teacher), **keys).train()


def loss_of(student: Features, teacher: Features, **keys: Any) -> tuple[float, Fitnet]:
    built = method(student, teacher, **keys)
    return built(student, teacher, made.batch(made.labels(len(student.logits)))).item(), built


def convolution(built: Fitnet, hint: int = 0) -> nn.Conv2d | nn.ConvTranspose2d:
    (found,) = (
        layer
        for layer in built.regressors[hint].modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    )
    return found


PAIRS = [
    # student's size, teacher's, the convolution: kernel, stride, padding
    ((4, 4), (4, 4), (1, 1, 0)),
    ((8, 8), (4, 4), (3, 2, 1)),
    ((4, 4), (8, 8), (4, 2, 1)),
    ((7, 7), (4, 4), (4, 1, 0)),
    ((8, 8), (3, 3), (1, 1, 0)),
    ((3, 3), (7, 7), (1, 1, 0)),
    ((9, 9), (3, 3), (1, 1, 0)),
    ((2, 6), (4, 3), (1, 1, 0)),
]


@pytest.mark.parametrize(("ours", "theirs", "layer"), PAIRS, ids=str)
def test_conv_agrees_with_the_equation(
    ours: tuple[int, int], theirs: tuple[int, int], layer: tuple[int, int, int]
) -> None:
    student, teacher = made.maps(3, 4, *ours, seed=1), made.maps(3, 5, *theirs, seed=2)
    found, built = loss_of(shown(student), shown(teacher), hints=[-1])
    used = convolution(built)
    assert (used.kernel_size[0], used.stride[0], used.padding[0]) == layer
    mine, wanted, kernel = (reference_hints.array(tensor) for tensor in (student, teacher, used.weight))
    if isinstance(used, nn.ConvTranspose2d):
        regressed = reference_hints.spread(mine, kernel, 2, 1)
    elif layer == (1, 1, 0):
        # No convolution bridges this gap: the larger is pooled down.
        size = (min(ours[0], theirs[0]), min(ours[1], theirs[1]))
        mine, wanted = reference_hints.resized(mine, size), reference_hints.resized(wanted, size)
        regressed = reference_hints.convolved(mine, kernel)
    else:
        regressed = reference_hints.convolved(mine, kernel, layer[1], layer[2])
    expected = reference_hints.squared(np.maximum(reference_hints.normalised(regressed), 0.0), wanted)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((3, 5), (7, 2))], ids=str)
def test_linear_agrees_with_the_equation(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student, teacher = made.maps(2, 4, *sizes[0], seed=1), made.maps(2, 3, *sizes[1], seed=2)
    found, built = loss_of(shown(student), shown(teacher), hints=[-1], regressor="linear")
    size = (min(sizes[0][0], sizes[1][0]), min(sizes[0][1], sizes[1][1]))
    kernel = reference_hints.array(convolution(built).weight)
    mine = reference_hints.convolved(reference_hints.resized(reference_hints.array(student), size), kernel)
    wanted = reference_hints.resized(reference_hints.array(teacher), size)
    assert found == pytest.approx(reference_hints.squared(mine, wanted), rel=1e-5)
    assert convolution(built).bias is None


def test_a_case_by_hand() -> None:
    # One image, one channel, one pixel of weight 2: (2 * 3 - 1)^2.
    student, teacher = torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1)
    built = method(shown(student), shown(teacher), hints=[-1], regressor="linear")
    nn.init.constant_(convolution(built).weight, 2.0)
    assert built(shown(student), shown(teacher), made.batch(made.labels(1))).item() == 25.0


def test_hints_are_counted_from_the_deepest_and_their_losses_added() -> None:
    student = shown(*(made.maps(3, 4, size, size, seed=size) for size in (8, 4, 2)))
    teacher = shown(*(made.maps(3, 4, size, size, seed=20 + size) for size in (16, 8, 4, 2)))

    def linear(hints: Any) -> Fitnet:
        built = method(student, teacher, hints=hints, regressor="linear")
        for n in range(len(built.hints)):
            nn.init.eye_(convolution(built, n).weight[:, :, 0, 0])
        return built

    batch = made.batch(made.labels(3))
    each = [linear([hint])(student, teacher, batch).item() for hint in (-3, -2, -1)]
    by_hand = [
        (ours - theirs).square().mean().item()
        for ours, theirs in zip(student.ends, teacher.ends[1:], strict=True)
    ]
    assert each == pytest.approx(by_hand, rel=1e-5)
    assert linear("all")(student, teacher, batch).item() == pytest.approx(sum(each), rel=1e-5)
    assert linear([-1, -3])(student, teacher, batch).item() == pytest.approx(each[0] + each[2], rel=1e-5)


def test_a_linear_image_of_the_student_can_be_matched_exactly() -> None:
    student = made.maps(4, 3, 4, 4)
    mixing = torch.randn(5, 3, 1, 1)
    teacher = nn.functional.conv2d(student, mixing)
    built = method(shown(student), shown(teacher), hints=[-1], regressor="linear")
    convolution(built).weight.data.copy_(mixing)
    loss = built(shown(student), shown(teacher), made.batch(made.labels(4)))
    assert loss.item() == pytest.approx(0.0, abs=1e-10)


def test_one_image_with_one_pixel_is_normalised_by_what_was_seen_before() -> None:
    student, teacher = shown(made.maps(1, 3, 1, 1)), shown(made.maps(1, 2, 1, 1, seed=9))
    built = method(student, teacher, hints=[-1])
    kept = {key: value.clone() for key, value in built.state_dict().items()}
    loss = built(student, teacher, made.batch(made.labels(1)))
    mapped = convolution(built)(student.map) / (1.0 + 1e-5) ** 0.5
    assert loss.item() == pytest.approx((mapped.relu() - teacher.map).square().mean().item(), rel=1e-5)
    assert all(torch.equal(built.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize("hints", [[-2], [-1, -3], "all"])
def test_a_network_without_such_an_end_is_named(hints: Any) -> None:
    few = shown(made.maps(2, 3, 4, 4)) if hints != "all" else made.features(made.maps(2, 3, 4, 4))
    many = shown(*(made.maps(2, 3, size, size) for size in (16, 8, 4)))
    with raises(ModelError, what="student"):
        method(few, many, hints=hints)
    with raises(ModelError, what="teacher"):
        method(many, few, hints=hints)


@pytest.mark.parametrize("hints", [[], [0], [2, -1], [-1, -1], "last"])
def test_hints_that_name_no_ends_are_refused(hints: Any) -> None:
    with pytest.raises(ValidationError):
        settings(hints=hints)
