from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.models.resampling import AreaResample, area_weights, smaller
from tests.stages.methods import made, reference_hints

sides = st.integers(1, 9)


@given(sides, sides, sides, sides)
@settings(max_examples=30, deadline=None)
def test_agrees_with_exact_areas(height: int, width: int, tall: int, wide: int) -> None:
    maps = made.maps(2, 2, height, width)
    resampled = AreaResample((height, width), (tall, wide))(maps)
    expected = reference_hints.resized(reference_hints.array(maps), (tall, wide))
    assert torch.allclose(resampled.double(), torch.from_numpy(expected), atol=1e-6)


@given(sides, sides)
def test_every_source_pixel_counts_equally(target: int, source: int) -> None:
    weights = area_weights(target, source)
    assert torch.allclose(weights.sum(1), torch.ones(target))
    assert torch.allclose(weights.sum(0), torch.full((source,), target / source))


def test_the_mean_stays_whatever_the_sizes() -> None:
    # Adaptive pooling of 7 to 4 counts three pixels of a side twice.
    maps = made.maps(1, 3, 7, 5)
    for target in ((4, 3), (4, 2), (1, 1), (14, 10), (9, 6)):
        assert torch.allclose(AreaResample((7, 5), target)(maps).mean((2, 3)), maps.mean((2, 3)), atol=1e-6)


def test_enlarging_by_a_whole_factor_repeats_pixels() -> None:
    maps = made.maps(2, 3, 3, 2)
    nearest = torch.nn.functional.interpolate(maps, (6, 8), mode="nearest")
    assert torch.allclose(AreaResample((3, 2), (6, 8))(maps), nearest)


def test_equal_sizes_are_left_alone_and_nothing_is_saved() -> None:
    maps = made.maps(2, 3, 3, 2)
    assert AreaResample((3, 2), (3, 2))(maps) is maps
    assert AreaResample((3, 2), (2, 2)).state_dict() == {}
    assert smaller((3, 8), (5, 2)) == (3, 2)


@pytest.mark.parametrize("target", [(2, 2), (3, 2)])
def test_follows_the_dtype_under_autocast(target: tuple[int, int]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        resampled = AreaResample((4, 4), target)(made.maps(1, 2, 4, 4).bfloat16())
    assert resampled.dtype == torch.bfloat16
