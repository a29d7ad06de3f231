from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as examples
from torch import Tensor

from pipeline.errors import ModelError
from stages.methods.msdcrd import TAU_RANGE, Msdcrd
from stages.models.features import Features
from tests.errors import raises
from tests.stages.methods import made, reference

SHAPES = {
    "alike": ((4, 6, 4, 4), (4, 6, 4, 4)),
    "teacher larger": ((4, 3, 4, 4), (4, 7, 8, 8)),
    "student larger": ((3, 5, 6, 6), (3, 4, 4, 4)),
    "not divisible": ((3, 4, 7, 7), (3, 6, 5, 5)),
    "not square": ((3, 4, 2, 5), (3, 6, 4, 7)),
    "one pixel": ((4, 4, 1, 1), (4, 6, 4, 4)),
    "one image": ((1, 4, 4, 4), (1, 6, 4, 4)),
}

SWITCHES: list[dict[str, Any]] = [
    {},
    {"grids": [1, 2]},
    {"grids": [3]},
    {"window_stride": 0.5},
    {"pool": "max"},
    {"pool": "max", "window_stride": 0.5},
    {"pool": "gem"},
    {"projector": "both_128"},
    {"projector": "mlp"},
    {"tau_sample": 0.05, "tau_feature": 0.2},
    {"alpha": 0.0},
    {"beta": 0.0},
    {"alpha": 0.3, "beta": 2.0},
    {"lambda_kd": 0.7, "kd_temperature": 2.0},
    {"symmetric": True},
    {"exclude_same_class": True},
    {"exclude_same_class": True, "negatives": "joint", "overlap_iou": 0.2},
    {"feature_axis": "channel"},
    {"feature_axis": "channel", "symmetric": True, "scale_weights": "pyramid"},
    {"negatives": "joint"},
    {"negatives": "joint", "symmetric": True},
    {"scale_weights": "pyramid"},
    {"selection": "none"},
    {"selection": "sdd"},
    {"selection": "sdd", "pool": "gem", "scale_weights": "pyramid"},
    {"selection": "topk", "topk": 3},
    {"selection": "topk", "topk": 3, "negatives": "joint", "symmetric": True, "overlap_iou": 0.2},
    {"selection": "topk", "topk": 2, "exclude_same_class": True, "symmetric": True},
    {"selection": "topk", "topk": 99},
    {"overlap_iou": 0.3, "window_stride": 0.5},
]


def pair(shape: str) -> tuple[Features, Features]:
    student, teacher = SHAPES[shape]
    return made.features(made.maps(*student, seed=1)), made.features(made.maps(*teacher, seed=2))


def loss(method: Msdcrd, student: Features, teacher: Features, labels: Tensor) -> Tensor:
    return method(student, teacher, made.batch(labels, made.head(teacher.map.shape[1])))


def expected(method: Msdcrd, student: Features, teacher: Features, labels: Tensor, **keys: Any) -> float:
    head = reference.module(made.head(teacher.map.shape[1]))
    layers = [
        reference.Layer(
            layer.location.map_in(student),
            layer.location.map_in(teacher),
            reference.module(layer.student_projector),
            reference.module(layer.teacher_projector),
        )
        for layer in made.layers(method)
    ]
    judge = reference.Judge(teacher.map, teacher.logits, head)
    return reference.msdcrd(made.settings(**keys), layers, labels.tolist(), judge, student.logits)


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
@pytest.mark.parametrize("shape", ["teacher larger", "not square"])
def test_every_switch_agrees_with_the_equations(shape: str, keys: dict[str, Any]) -> None:
    student, teacher = pair(shape)
    labels = torch.tensor([1, 2, 1, 0][: len(student.map)])
    method = made.method(student, teacher, **keys)
    found = loss(method, student, teacher, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        expected(method, student, teacher, labels, **keys), rel=2e-5, abs=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_agrees_with_the_equations(shape: str) -> None:
    student, teacher = pair(shape)
    labels = made.labels(len(student.map))
    for keys in ({}, {"selection": "sdd", "window_stride": 0.5}):
        method = made.method(student, teacher, **keys)
        found = loss(method, student, teacher, labels).item()
        assert found == pytest.approx(expected(method, student, teacher, labels, **keys), rel=2e-5, abs=1e-6)


def test_layers_are_found_by_number_and_added() -> None:
    # In another order than the method's, beside one that another method asked for.
    numbers = (-1, 0, 2)
    student = made.features(
        made.maps(3, 4, 4, 4), *(made.maps(3, c, 6, 6, seed=c) for c in (3, 4, 5)), numbers=numbers
    )
    teacher = made.features(
        made.maps(3, 5, 4, 4), *(made.maps(3, c, 8, 8, seed=c) for c in (6, 7, 8)), numbers=numbers
    )
    labels = made.labels(3)
    for keys in ({"layers": [2, -1]}, {"layers": [2], "selection": "sdd"}):
        method = made.method(student, teacher, **keys)
        assert method.needs(**keys).stages == tuple(keys["layers"])
        found = loss(method, student, teacher, labels).item()
        assert found == pytest.approx(expected(method, student, teacher, labels, **keys), rel=2e-5)


def test_stage_ends_are_paired_from_the_deepest_and_added() -> None:
    student, teacher = ends_pair()
    labels = made.labels(3)
    switches: list[dict[str, Any]] = [
        {"layers": "ends"},
        {"layers": "ends", "activation": "before", "selection": "sdd"},
    ]
    for keys in switches:
        method = made.method(student, teacher, **keys)
        needs = method.needs(**keys)
        assert (needs.stages, needs.ends) == ((), True)
        assert needs.before_activation == ("activation" in keys)
        locations = [layer.location for layer in made.layers(method)]
        assert [location.end for location in locations] == [-2, -1]
        # What the first layer is given, said without the method: the second of three ends, the first of two.
        before = 0.5 if "activation" in keys else 0.0
        assert torch.equal(locations[0].map_in(student), student.ends[1] - before)
        assert torch.equal(locations[0].map_in(teacher), teacher.ends[0] - before)
        found = loss(method, student, teacher, labels).item()
        assert found == pytest.approx(expected(method, student, teacher, labels, **keys), rel=2e-5)


def ends_pair() -> tuple[Features, Features]:
    student_ends = [made.maps(3, c, size, size, seed=c) for c, size in ((2, 8), (3, 6), (4, 4))]
    teacher_ends = [made.maps(3, c, size, size, seed=c) for c, size in ((5, 8), (6, 4))]
    return (
        made.features(student_ends[-1], ends=tuple(student_ends)),
        made.features(teacher_ends[-1], ends=tuple(teacher_ends)),
    )


@pytest.mark.parametrize("selection", ["dedup", "sdd", "topk"])
def test_before_the_activation(selection: str) -> None:
    student, teacher = pair("teacher larger")
    assert student.map_before is not None
    assert teacher.map_before is not None
    labels = made.labels(4)
    keys: dict[str, Any] = {"activation": "before", "selection": selection, "topk": 3}
    method = made.method(student, teacher, **keys)
    assert method.needs(**keys).before_activation
    assert made.layers(method)[0].location.map_in(student) is student.map_before
    assert made.layers(method)[0].location.map_in(teacher) is teacher.map_before
    # The teacher's classifier still judges the map that it is made for.
    found = loss(method, student, teacher, labels).item()
    assert found == pytest.approx(expected(method, student, teacher, labels, **keys), rel=2e-5)
    assert found != loss(made.method(student, teacher, selection=selection, topk=3), student, teacher, labels)


def test_networks_without_stage_ends_are_refused() -> None:
    with raises(ModelError, what="stage ends"):
        made.method(*pair("alike"), layers="ends")


def test_projector_none_needs_equal_channels() -> None:
    student, teacher = pair("alike")
    method = made.method(student, teacher, projector="none")
    assert list(method.parameters()) == []
    labels = made.labels(4)
    assert loss(method, student, teacher, labels).item() == pytest.approx(
        expected(method, student, teacher, labels, projector="none"), rel=2e-5
    )
    with raises(ModelError, hint="student_linear"):
        made.method(*pair("teacher larger"), projector="none")


# --- invariants


def test_one_window_or_one_image_has_nothing_to_contrast() -> None:
    student, teacher = pair("one pixel")
    one_window = made.method(student, teacher, alpha=0.0)
    assert loss(one_window, student, teacher, made.labels(4)).item() == 0.0
    student, teacher = pair("one image")
    one_image = made.method(student, teacher, beta=0.0)
    assert loss(one_image, student, teacher, made.labels(1)).item() == 0.0


def test_equal_vectors_give_the_logarithm_of_their_number() -> None:
    constant = made.features(torch.ones(6, 4, 4, 4))
    for keys, number in (({"beta": 0.0}, 6), ({"alpha": 0.0}, 21)):
        method = made.method(constant, constant, projector="none", **keys)
        assert loss(method, constant, constant, made.labels(6)).item() == pytest.approx(math.log(number))


def test_a_student_pooled_from_the_teacher_is_at_the_minimum() -> None:
    teacher = made.features(made.maps(8, 16, 8, 8))
    student = made.features(torch.nn.functional.avg_pool2d(teacher.map, 2))
    method = made.method(student, teacher, projector="none", tau_sample=0.01, tau_feature=0.01)
    best = loss(method, student, teacher, made.labels(8))
    other = made.features(made.maps(8, 16, 4, 4, seed=9))
    assert best.item() < 1e-3 < loss(method, other, teacher, made.labels(8)).item()


def test_windows_are_distinct_on_both_maps() -> None:
    # A 4x4 grid over 2x2 cells copies each four times; a loss over copies never falls below log 4.
    student, teacher = made.features(made.maps(3, 4, 2, 2)), made.features(made.maps(3, 4, 8, 8))
    method = made.method(student, teacher, grids=[1, 2, 4], projector="none", tau_feature=0.001, alpha=0.0)
    assert len(made.layers(method)[0].regions) == 5
    same = made.features(torch.nn.functional.avg_pool2d(teacher.map, 4))
    assert loss(method, same, teacher, made.labels(3)).item() < 0.01


@examples(max_examples=20, deadline=None)
@given(
    order=strategies.permutations(range(5)),
    keys=strategies.sampled_from(
        [{}, {"negatives": "joint"}, {"selection": "topk", "topk": 4}, SWITCHES[16]]
    ),
)
def test_the_order_of_the_images_does_not_matter(order: list[int], keys: dict[str, Any]) -> None:
    student, teacher = made.maps(5, 4, 4, 4, seed=1), made.maps(5, 6, 4, 4, seed=2)
    labels = made.labels(5)
    method = made.method(made.features(student), made.features(teacher), **keys)
    one = loss(method, made.features(student), made.features(teacher), labels)
    other = loss(method, made.features(student[order]), made.features(teacher[order]), labels[order])
    assert one.item() == pytest.approx(other.item(), rel=1e-5)


def test_the_order_of_the_windows_does_not_matter() -> None:
    # Mirroring both images permutes the windows of every grid.
    student, teacher = made.maps(4, 4, 4, 4, seed=1), made.maps(4, 6, 8, 8, seed=2)
    method = made.method(made.features(student), made.features(teacher))
    one = loss(method, made.features(student), made.features(teacher), made.labels(4))
    mirrored = made.features(student.flip(-1)), made.features(teacher.flip(-1))
    assert one.item() == pytest.approx(loss(method, *mirrored, made.labels(4)).item(), rel=1e-5)


# --- gradients


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
def test_gradients_reach_the_student_and_every_parameter_and_never_the_teacher(keys: dict[str, Any]) -> None:
    student_map = made.maps(4, 3, 4, 4, seed=1).requires_grad_()
    teacher_map = made.maps(4, 7, 8, 8, seed=2).requires_grad_()
    student, teacher = made.features(student_map), made.features(teacher_map)
    method = made.method(student, teacher, learn_tau=True, **{**keys, "lambda_kd": 0.0})
    loss(method, student, teacher, torch.tensor([1, 2, 1, 0])).backward()
    assert teacher_map.grad is None
    assert student_map.grad is not None
    assert student_map.grad.isfinite().all()
    assert student_map.grad.abs().max() > 0
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert method.log_tau.keys() == {
        key for key, weight in (("sample", "alpha"), ("feature", "beta")) if keys.get(weight, 1.0) > 0.0
    }


def test_inference_tensors_of_the_teacher_are_fine() -> None:
    student_map = made.maps(4, 3, 4, 4).requires_grad_()
    with torch.inference_mode():
        teacher = made.features(made.maps(4, 7, 8, 8))
    for keys in ({}, {"projector": "both_128"}, {"selection": "sdd"}, {"lambda_kd": 1.0}, {"pool": "max"}):
        student = made.features(student_map)
        loss(made.method(student, teacher, **keys), student, teacher, made.labels(4)).backward()
    assert student_map.grad is not None


def test_a_learned_temperature_at_its_bound_still_learns() -> None:
    student, teacher = pair("alike")
    method = made.method(student, teacher, learn_tau=True, projector="none")
    for start, bound in ((-9.0, TAU_RANGE[0]), (3.0, TAU_RANGE[1])):
        method.log_tau["sample"].data.fill_(start)
        loss(method, student, teacher, made.labels(4)).backward()
        assert method.log_tau["sample"].item() == pytest.approx(math.log(bound))
        assert method.log_tau["sample"].grad is not None
        assert method.log_tau["sample"].grad.abs() > 0
        method.zero_grad()


def test_an_optimiser_brings_the_loss_down() -> None:
    torch.manual_seed(0)
    teacher = made.features(made.maps(16, 12, 4, 4))
    student = made.features(torch.einsum("dc,bchw->bdhw", torch.randn(20, 12), teacher.map))
    method = made.method(student, teacher, learn_tau=True)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(method, student, teacher, made.labels(16))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]


# --- numbers that do not behave


@pytest.mark.parametrize(
    "keys", [{}, {"negatives": "joint"}, {"feature_axis": "channel"}, {"pool": "gem"}], ids=str
)
@pytest.mark.parametrize("images", [1, 2, 16])
def test_finite_under_bf16_autocast_and_for_small_batches(images: int, keys: dict[str, Any]) -> None:
    student_map = made.maps(images, 3, 4, 4).requires_grad_()
    teacher = made.features(made.maps(images, 7, 4, 4, seed=2))
    method = made.method(made.features(student_map), teacher, **keys)
    plain = loss(method, made.features(student_map), teacher, made.labels(images))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(method, made.features(student_map), teacher, made.labels(images))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-4, abs=1e-6)  # float32 inside
    value.backward()
    assert student_map.grad is not None
    assert student_map.grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
@pytest.mark.parametrize("keys", [{}, {"feature_axis": "channel"}, {"pool": "gem"}, {"pool": "max"}], ids=str)
def test_finite_for_collapsed_and_for_huge_features(scale: float, keys: dict[str, Any]) -> None:
    for student_scale, teacher_scale in ((scale, 1.0), (1.0, scale), (scale, scale)):
        student_map = (torch.ones(4, 6, 4, 4) * student_scale).requires_grad_()
        student = made.features(student_map)
        teacher = made.features(torch.ones(4, 6, 4, 4) * teacher_scale)
        method = made.method(student, teacher, projector="none", **keys)
        value = loss(method, student, teacher, made.labels(4))
        value.backward()
        assert value.isfinite()
        assert student_map.grad is not None
        assert student_map.grad.isfinite().all()
        assert student_map.grad.abs().max() < 1e3


def test_masking_every_negative_leaves_zero() -> None:
    student, teacher = pair("alike")
    method = made.method(student, teacher, exclude_same_class=True, beta=0.0)
    value = loss(method, student, teacher, torch.zeros(4, dtype=torch.int64))
    assert value.item() == 0.0


# --- refusals


def test_a_selection_without_a_linear_head_is_refused() -> None:
    student, teacher = pair("alike")
    bent = made.spec(teacher).__class__(**{**vars(made.spec(teacher)), "head_is_linear_on_pooled": False})
    for selection in ("sdd", "topk"):
        with raises(ModelError, hint="selection: dedup"):
            Msdcrd(made.spec(student), bent, selection=selection)


def test_a_network_without_a_map_is_refused() -> None:
    student, teacher = pair("alike")
    blind = made.spec(teacher).__class__(**{**vars(made.spec(teacher)), "map": (0, 0, 0)})
    with raises(ModelError, what="teacher's architecture shows no map"):
        Msdcrd(made.spec(student), blind)


@pytest.mark.parametrize(
    "keys",
    [
        {"alpha": 0.0, "beta": 0.0},
        {"grids": [0]},
        {"layers": []},
        {"layers": [1, 1]},
        {"tau_sample": 0.0},
        {"layers": [1], "activation": "before"},
    ],
    ids=str,
)
def test_settings_that_say_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        made.settings(**keys)
