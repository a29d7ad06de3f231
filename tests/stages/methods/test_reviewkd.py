from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.reviewkd import Fusion, Reviewkd
from stages.models.features import Features, Needs
from tests.errors import raises
from tests.stages.methods import made, reference_hints


def shown(*ends: Tensor) -> Features:
    return made.features(ends[-1], ends=ends)


def maps_of(channels: int, sizes: tuple[int, ...], seed: int, images: int = 3) -> Features:
    found = shown(
        *(made.maps(images, channels + n, side, side, seed=seed + n) for n, side in enumerate(sizes))
    )
    # Not the same but for a constant, which a batch norm takes away again.
    found.ends_before = tuple(end**3 for end in found.ends)
    return found


def method(student: Features, teacher: Features, **keys: Any) -> Reviewkd:
    torch.manual_seed(4)
    built = Reviewkd(made.spec(student), made.spec(teacher), **keys).train()
    for fusion in fusions(built):
        if fusion.gates is not None:
            # Gates that differ from pixel to pixel, and from 1/2.
            nn.init.normal_(fusion.gates[0].weight)  # type: ignore[arg-type]
            nn.init.normal_(fusion.gates[0].bias)  # type: ignore[arg-type]
    return built


def fusions(built: Reviewkd) -> list[Fusion]:
    return [cast(Fusion, fusion) for fusion in built.fusions]


def loss_of(built: Reviewkd, student: Features, teacher: Features) -> Tensor:
    found: Tensor = built(student, teacher, made.batch(made.labels(len(student.logits))))
    return found


def by_hand(built: Reviewkd, student: Features, teacher: Features, *, vector: bool, before: bool) -> float:
    ours = [*reversed(student.ends_before if before else student.ends)]
    theirs = [*reversed(teacher.ends_before)]
    if vector:
        ours.insert(0, student.embedding[:, :, None, None])
        theirs.insert(0, teacher.embedding[:, :, None, None])
    count = min(len(ours), len(theirs))
    weights = [
        (
            reference_hints.array(fusion.get_parameter("enter.0.weight")),
            reference_hints.array(fusion.get_parameter("leave.0.weight")),
            *(
                (None, None)
                if fusion.gates is None
                else (
                    reference_hints.array(fusion.get_parameter("gates.0.weight")),
                    reference_hints.array(fusion.get_parameter("gates.0.bias")),
                )
            ),
        )
        for fusion in fusions(built)
    ]
    return reference_hints.reviewed(
        [reference_hints.array(maps) for maps in ours[:count]],
        [reference_hints.array(maps) for maps in theirs[:count]],
        weights,
    )


CASES = [
    # the student's sides, the teacher's, what is set
    ((8, 4, 2), (8, 4, 2), {}),
    ((8, 4), (8, 4), {"pooled_vector": False}),
    ((4, 2), (8, 4), {}),
    ((8, 4), (4, 2), {}),
    ((8, 4, 2, 1), (4, 2), {"student_before_activation": True}),
    ((4, 2), (8, 4, 2, 1), {"channels": 2}),
    ((7, 3), (4, 2), {}),
]


@pytest.mark.parametrize(("ours", "theirs", "keys"), CASES, ids=str)
def test_agrees_with_the_equations(
    ours: tuple[int, ...], theirs: tuple[int, ...], keys: dict[str, Any]
) -> None:
    student, teacher = maps_of(2, ours, seed=1), maps_of(3, theirs, seed=20)
    built = method(student, teacher, **keys)
    expected = by_hand(
        built,
        student,
        teacher,
        vector=keys.get("pooled_vector", True),
        before=keys.get("student_before_activation", False),
    )
    assert loss_of(built, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_maps_of_other_shapes_than_squares() -> None:
    student = shown(made.maps(2, 3, 6, 4, seed=1), made.maps(2, 3, 3, 2, seed=2))
    teacher = shown(made.maps(2, 4, 4, 8, seed=3), made.maps(2, 4, 2, 4, seed=4))
    loss = loss_of(method(student, teacher), student, teacher)
    assert torch.isfinite(loss)


def test_a_deeper_level_reaches_the_shallower_ones() -> None:
    """The review: what a shallow level is compared with depends on the student's deeper map, not the
    reverse."""
    student, teacher = maps_of(3, (8, 4), seed=1), maps_of(3, (8, 4), seed=9)
    built = method(student, teacher, pooled_vector=False)
    ends = [end.clone().requires_grad_() for end in student.ends]
    deep, shallow = fusions(built)
    first, fused = deep(ends[1], None)
    second, _ = shallow(ends[0], fused)
    by_deep = torch.autograd.grad(second.square().sum(), ends, retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in by_deep)
    assert torch.autograd.grad(first.square().sum(), ends, allow_unused=True)[0] is None


def test_the_teacher_is_read_before_its_activation_the_student_after() -> None:
    assert Reviewkd.needs() == Needs(ends=True, before_activation=True)
    student, teacher = maps_of(3, (4, 2), seed=1), maps_of(3, (4, 2), seed=9)
    built = method(student, teacher)
    plain = loss_of(built, student, teacher)
    student.ends_before = tuple(end * 0 for end in student.ends_before)
    teacher.ends = tuple(end * 0 for end in teacher.ends)
    assert torch.equal(loss_of(built, student, teacher), plain)


def test_pairs_are_made_from_the_deepest() -> None:
    student, teacher = maps_of(2, (8, 4, 2), seed=1), maps_of(3, (16, 8, 4, 2), seed=20)
    built = method(student, teacher)
    assert [fusion.enter[0].in_channels for fusion in fusions(built)] == [4, 4, 3, 2]
    assert [fusion.leave[0].out_channels for fusion in fusions(built)] == [6, 6, 5, 4]
    assert [fusion.gates is None for fusion in fusions(built)] == [True, False, False, False]


def test_networks_without_ends_are_refused() -> None:
    bare, whole = made.features(made.maps(2, 3, 4, 4)), maps_of(3, (4, 2), seed=1)
    for student, teacher in ((bare, whole), (whole, bare)):
        with raises(ModelError, what="reviewkd"):
            method(student, teacher)


def test_ends_that_were_not_shown_are_an_error_not_a_smaller_loss() -> None:
    student, teacher = maps_of(3, (4, 2), seed=1), maps_of(3, (4, 2), seed=9)
    built = method(student, teacher)
    teacher.ends_before = ()
    with pytest.raises(ValueError):
        loss_of(built, student, teacher)
