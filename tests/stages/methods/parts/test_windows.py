from __future__ import annotations

import pytest
import torch

from stages.methods.parts.windows import (
    Window,
    WindowPool,
    intersection_over_union,
    limit_grids,
    pooling_matrix,
    sliding_windows,
    without_duplicates,
)


@pytest.mark.parametrize(
    ("grids", "stride", "number"), [([1, 2, 4], 1.0, 21), ([1, 2, 4], 0.5, 59), ([3], 1.0, 9), ([1], 0.1, 1)]
)
def test_number_of_windows(grids: list[int], stride: float, number: int) -> None:
    made = sliding_windows(grids, stride)
    assert len(made) == number
    assert all(window.bottom <= 1.0 + 1e-9 and window.right <= 1.0 + 1e-9 for window in made)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (5, 3), (1, 1), (8, 2)])
def test_rows_of_the_matrix_are_means_and_a_grid_covers_the_map_evenly(height: int, width: int) -> None:
    for grid in (1, 2, 3, 4):
        matrix = pooling_matrix(sliding_windows([grid], 1.0), height, width)
        assert torch.allclose(matrix.sum(1), torch.ones(grid * grid))
        # Each pixel weighs the same in the whole, also where the grid does not divide the map.
        assert torch.allclose(matrix.mean(0), torch.full((height * width,), 1 / (height * width)))


def test_exact_area_overlap() -> None:
    # Windows of 1.5 pixels on a map of three.
    matrix = pooling_matrix(sliding_windows([2], 1.0), 3, 3)
    expected = torch.outer(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 0.0])).flatten() / 9
    assert torch.allclose(matrix[0], expected)


def test_the_same_regions_on_maps_of_two_sizes() -> None:
    large = torch.randn(2, 3, 8, 8)
    small = torch.nn.functional.avg_pool2d(large, 2)
    made = sliding_windows([1, 2, 4], 1.0)
    assert torch.allclose(WindowPool(made, 8, 8)(large), WindowPool(made, 4, 4)(small), atol=1e-6)


@pytest.mark.parametrize("kind", ["avg", "max", "gem"])
def test_memory_format_and_dtype_do_not_matter(kind: str) -> None:
    maps = torch.randn(2, 5, 4, 6).bfloat16()
    pool = WindowPool(sliding_windows([1, 2, 4], 0.5), 4, 6, kind)  # type: ignore[arg-type]
    plain = pool(maps.float())
    assert plain.shape == (2, 59, 5)
    assert torch.allclose(pool(maps.to(memory_format=torch.channels_last)), plain, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert pool(maps).dtype == torch.float32
        assert torch.allclose(pool(maps), plain, atol=1e-6)


def test_max_is_the_largest_value_touched() -> None:
    maps = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert WindowPool(sliding_windows([1, 2], 1.0), 3, 3, "max")(maps).flatten().tolist() == [8, 4, 5, 7, 8]


def test_gem_of_equal_values_is_that_value_and_lies_between_mean_and_max() -> None:
    made = sliding_windows([1, 2], 1.0)
    assert torch.allclose(WindowPool(made, 4, 4, "gem")(torch.full((1, 2, 4, 4), 0.3)), torch.tensor(0.3))
    maps = torch.rand(2, 3, 4, 4)
    low, middle, high = (WindowPool(made, 4, 4, kind)(maps) for kind in ("avg", "gem", "max"))
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_grids_are_cut_to_the_smallest_side() -> None:
    assert limit_grids([4, 1, 2], (8, 8), (4, 4)) == [1, 2, 4]
    assert limit_grids([1, 2, 4], (8, 8), (2, 7)) == [1, 2]
    assert limit_grids([1, 2, 4], (3, 3)) == [1, 2, 3]
    assert limit_grids([1, 2, 4], (1, 1)) == [1]


def test_copies_on_either_map_are_dropped_and_the_coarsest_stays() -> None:
    made = sliding_windows([1, 2, 4], 1.0)
    assert len(without_duplicates(made, (4, 4), (8, 8))) == 21
    assert without_duplicates(made, (2, 2), (8, 8)) == made[:5]
    assert without_duplicates(made, (8, 8), (1, 1)) == made[:1]


def test_intersection_over_union() -> None:
    found = intersection_over_union([Window(1, 0, 0, 1.0), Window(2, 0, 0, 0.5), Window(2, 0.25, 0, 0.5)])
    assert torch.allclose(
        found, torch.tensor([[1, 0.25, 0.25], [0.25, 1, 1 / 3], [0.25, 1 / 3, 1]], dtype=torch.float64)
    )


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        WindowPool(sliding_windows([1], 1.0), 4, 4)(torch.randn(1, 1, 5, 5))
