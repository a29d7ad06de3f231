from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch

from pipeline.errors import ModelError
from stages.methods.settings import UhkdSettings
from stages.methods.uhkd import SpectralDistance, Uhkd
from stages.models.features import Features
from tests.errors import raises
from tests.stages.methods import made, reference, reference_unlike

Sizes = list[tuple[int, int, int]]

PAIRS: dict[str, tuple[Sizes, Sizes]] = {
    "alike": ([(3, 8, 8), (4, 4, 4)], [(3, 8, 8), (4, 4, 4)]),
    "teacher larger": ([(3, 4, 4), (4, 2, 2)], [(5, 8, 8), (6, 7, 7)]),
    "student larger": ([(3, 9, 9), (4, 7, 7)], [(5, 8, 8), (2, 4, 4)]),
    "not square": ([(3, 4, 7), (4, 2, 5)], [(5, 8, 3), (6, 5, 6)]),
    "one pixel": ([(3, 1, 1)], [(5, 4, 4)]),
    "fewer ends": ([(4, 4, 4)], [(3, 9, 9), (5, 8, 8), (6, 4, 4)]),
}


def pair(name: str, images: int = 3) -> tuple[Features, Features]:
    student, teacher = PAIRS[name]
    return made.of_ends(student, images, 1), made.of_ends(teacher, images, 20)


def method(student: Features, teacher: Features, **keys: Any) -> Uhkd:
    torch.manual_seed(1)
    return Uhkd(made.spec(student), made.spec(teacher), **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"representation": "complex"},
        {"representation": "complex", "lambda_kd": 0.0},
        {"block": 3, "kd_temperature": 2.0, "lambda_kd": 0.3},
        {"block": 4},
        {"ends": 1, "representation": "complex"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_the_equation(name: str, keys: dict[str, Any]) -> None:
    student, teacher = pair(name)
    made_method = method(student, teacher, **keys)
    settings = UhkdSettings(name="uhkd", **keys)
    count = min(len(student.ends), len(teacher.ends), settings.ends)
    distances = [cast(SpectralDistance, one) for one in made_method.pairs]
    spectral = [
        reference_unlike.spectral(
            ours, theirs, one.projector.weight.detach(), settings.block, settings.representation
        )
        for ours, theirs, one in zip(student.ends[-count:], teacher.ends[-count:], distances, strict=True)
    ]
    expected = sum(spectral) / len(spectral)
    expected += settings.lambda_kd * reference.kd(student.logits, teacher.logits, settings.kd_temperature)
    found = made_method(student, teacher, made.batch(made.labels(3)))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_waves_beyond_the_block_do_not_count() -> None:
    # A wave of four periods over 16 pixels, of which block 7 keeps at most three.
    wave = torch.cos(2 * math.pi * 4 * torch.arange(16) / 16).expand(2, 3, 16, 16)
    maps = made.maps(2, 3, 16, 16)
    student, plain, waved = (made.features(one, ends=(one,)) for one in (maps, maps, maps + 5 * wave))
    for representation in ("log_magnitude", "complex"):
        made_method = method(student, plain, representation=representation, lambda_kd=0.0)
        labels = made.batch(made.labels(2))
        assert made_method(student, plain, labels).item() == pytest.approx(
            made_method(student, waved, labels).item(), rel=1e-4
        )
        wider = method(student, plain, representation=representation, lambda_kd=0.0, block=9)
        assert wider(student, plain, labels).item() != pytest.approx(
            wider(student, waved, labels).item(), rel=1e-2
        )


def test_magnitudes_do_not_see_where_things_are() -> None:
    maps = made.maps(2, 4, 8, 8)
    student, teacher = made.features(maps, ends=(maps,)), made.features(maps, ends=(maps,))
    rolled = made.features(maps, ends=(maps.roll((2, 3), (2, 3)),))
    labels = made.batch(made.labels(2))
    blind = method(student, teacher, lambda_kd=0.0)
    assert blind(student, teacher, labels).item() == pytest.approx(
        blind(student, rolled, labels).item(), rel=1e-4
    )
    seeing = method(student, teacher, lambda_kd=0.0, representation="complex")
    assert seeing(student, teacher, labels).item() != pytest.approx(
        seeing(student, rolled, labels).item(), rel=1e-2
    )


def test_an_optimiser_finds_a_student_that_is_a_mixture_of_the_teacher_s_channels() -> None:
    torch.manual_seed(0)
    maps = made.maps(16, 6, 8, 8)
    mixed = torch.einsum("dc,bchw->bdhw", torch.randn(6, 6), maps)
    student, teacher = made.features(mixed, ends=(mixed,)), made.features(maps, ends=(maps,))
    made_method = method(student, teacher, lambda_kd=0.0, representation="complex")
    optimizer = torch.optim.Adam(made_method.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = made_method(student, teacher, made.batch(made.labels(16)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_a_network_without_stage_ends_is_refused() -> None:
    without, teacher = made.features(made.maps(2, 3, 4, 4)), pair("alike")[1]
    with raises(ModelError, what="uhkd needs a student"):
        method(without, teacher)
