"""Rounding with a gradient, against cases worked out by hand and against ONNX Runtime's quantizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType
from torch import nn
from torch.nn.utils import parametrize

from stages.quantization_aware.rounding import Grid, Rounding, WeightRounding

UNSIGNED = Grid(scale=0.5, zero_point=2, lowest=0, highest=255)
SIGNED = Grid(scale=0.5, zero_point=0, lowest=-128, highest=127)


def test_values_go_to_the_grid_and_are_cut_off_at_its_ends() -> None:
    values = torch.tensor([[-3.0, -1.1, -0.2, 0.3, 0.8, 130.0]])
    assert Rounding(UNSIGNED, learn=False)(values).tolist() == [[-1.0, -1.0, 0.0, 0.5, 1.0, 126.5]]
    assert Rounding(SIGNED, learn=False)(values).tolist() == [[-3.0, -1.0, 0.0, 0.5, 1.0, 63.5]]


def test_the_gradient_passes_within_the_ends_and_moves_the_scale() -> None:
    """Values 0.3 and 0.8 are 0.6 and 1.6 steps, off by +0.4 and +0.4; -3 is below the end, 130 above."""
    values = torch.tensor([[-3.0, 0.3, 0.8, 130.0]], requires_grad=True)
    rounding = Rounding(UNSIGNED, learn=True)
    (rounding(values) * torch.tensor([1.0, 2.0, 3.0, 5.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 2.0, 3.0, 0.0]]
    # d/d scale: -2 (the lower end) + 2 * 0.4 + 3 * 0.4 + 5 * 253 (the upper end); times the scale, as its
    # logarithm is learned, and LSQ's 1 / sqrt(values * steps).
    expected = (-2 + 0.8 + 1.2 + 5 * 253) * 0.5 / math.sqrt(4 * 253)
    assert rounding.log_scale.grad is not None
    assert float(rounding.log_scale.grad) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("zero_point", [0, 255])
def test_a_grid_to_one_side_of_zero_learns_like_one_to_the_other(zero_point: int) -> None:
    side = 1.0 if zero_point == 0 else -1.0
    rounding = Rounding(Grid(scale=0.5, zero_point=zero_point, lowest=0, highest=255), learn=True)
    (rounding(side * torch.tensor([[0.3, 130.0]])) * side).sum().backward()
    assert rounding.log_scale.grad is not None
    assert float(rounding.log_scale.grad) == pytest.approx((0.4 + 255) * 0.5 / math.sqrt(2 * 255), rel=1e-5)


def test_what_is_no_number_stays_none() -> None:
    """Cut off to an end of the grid, it would hide from the loss that the network has diverged."""
    values = torch.tensor([[math.nan, math.inf, 0.3]])
    assert Rounding(SIGNED, learn=False)(values)[0, 0].isnan()
    assert Rounding(SIGNED, learn=False)(values)[0, 1:].tolist() == [63.5, 0.5]


def test_a_range_that_is_not_learned_is_no_parameter() -> None:
    assert list(Rounding(SIGNED, learn=False).parameters()) == []
    assert "log_scale" in Rounding(SIGNED, learn=False).state_dict()


@pytest.mark.parametrize(("grid", "kind", "symmetric"), [(UNSIGNED, 2, False), (SIGNED, 3, True)])
def test_the_quantizer_makes_the_same_grid_of_its_range(grid: Grid, kind: int, symmetric: bool) -> None:
    low, high = Rounding(grid, learn=False).range()
    lowest, highest = get_qmin_qmax_for_qType(kind, symmetric=symmetric)
    zero_point, scale = compute_scale_zp(np.float32(low), np.float32(high), lowest, highest, symmetric)
    assert float(scale) == pytest.approx(grid.scale, rel=1e-6)
    assert int(zero_point) == grid.zero_point


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_rounded_and_learn_as_if_they_were_not(per_channel: bool) -> None:
    learned = nn.Parameter(torch.tensor([[1.0, 0.26, -0.1], [8.0, -4.1, 0.9]]))
    layer = nn.Linear(3, 2, bias=False)
    layer.weight = learned
    parametrize.register_parametrization(layer, "weight", WeightRounding(4, per_channel=per_channel))
    expected = [[1.0, 0.25, 0.0] if per_channel else [0.0, 0.0, 0.0], [8.0, -4.0, 0.0]]
    assert layer.weight.tolist() == expected
    layer(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert learned.grad is not None
    assert learned.grad.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_bfloat16_is_rounded_in_float32() -> None:
    values = torch.linspace(-1.0, 1.0, 64, dtype=torch.bfloat16)[None]
    grid = Grid(scale=0.01, zero_point=0, lowest=-128, highest=127)
    rounded = Rounding(grid, learn=False)(values)
    assert rounded.dtype == torch.bfloat16
    expected = Rounding(grid, learn=False)(values.float()).bfloat16()
    assert torch.equal(rounded, expected)
