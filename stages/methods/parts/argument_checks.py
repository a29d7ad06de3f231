"""Checks of a loss's arguments, shared by the settings classes and the constructors.

Each function returns None or raises a ValueError that names the argument, its value and the permitted
range. This module imports nothing heavy, because the settings classes are loaded with every profile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def require_above(bound: float, **arguments: float) -> None:
    """Require finite numbers greater than a bound.

    Args:
        bound: The exclusive lower bound.
        **arguments: Values by argument name.

    Raises:
        ValueError: A value is not above the bound, or not finite.
    """
    for name, value in arguments.items():
        if not (math.isfinite(value) and value > bound):
            raise ValueError(f"{name} must be above {bound:g}, found {value:g}")


def require_at_least(bound: float, **arguments: float) -> None:
    """Require finite numbers greater than or equal to a bound.

    Args:
        bound: The inclusive lower bound.
        **arguments: Values by argument name.

    Raises:
        ValueError: A value is below the bound, or not finite.
    """
    for name, value in arguments.items():
        if not (math.isfinite(value) and value >= bound):
            raise ValueError(f"{name} must be at least {bound:g}, found {value:g}")


def require_at_most(bound: float, **arguments: float) -> None:
    """Require numbers less than or equal to a bound.

    Args:
        bound: The inclusive upper bound.
        **arguments: Values by argument name.

    Raises:
        ValueError: A value is above the bound, or not a number.
    """
    for name, value in arguments.items():
        if not value <= bound:
            raise ValueError(f"{name} must be at most {bound:g}, found {value:g}")


def require_one_of(choices: Collection[str], **arguments: str) -> None:
    """Require names from a fixed list.

    Args:
        choices: The permitted names.
        **arguments: Values by argument name.

    Raises:
        ValueError: A value is not among the choices.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; found {value!r}")


def require_positive_weight(**weights: float) -> None:
    """Require that at least one of several weights is not 0; otherwise the loss is always 0.

    Args:
        **weights: Weights, 0 or more, by argument name.

    Raises:
        ValueError: All weights are 0.
    """
    if any(weight != 0.0 for weight in weights.values()):
        return
    *first, last = weights
    amount = "both" if len(weights) == 2 else "all"
    raise ValueError(f"{', '.join(first)} and {last} are {amount} 0: the method would do nothing")


def require_grids(grids: Sequence[int]) -> None:
    """Require at least one grid, and at least one cell per axis in each grid.

    Args:
        grids: Cells or windows per axis at each scale.

    Raises:
        ValueError: There is no grid, or a grid has less than one cell.
    """
    if not grids:
        raise ValueError("grids must contain at least one number of cells per axis, such as [1, 2, 4]")
    if min(grids) < 1:
        raise ValueError(f"grids must be at least 1, found {min(grids)}")


def require_temperatures(temperatures: Sequence[float]) -> None:
    """Require at least one temperature, each above 0.

    Args:
        temperatures: Divisors of the logits.

    Raises:
        ValueError: There is no temperature, or one is not above 0.
    """
    if not temperatures:
        raise ValueError("temperatures must contain at least one number")
    for temperature in temperatures:
        require_above(0.0, temperatures=temperature)


def require_stage_ends(name: str, numbers: Sequence[int], *, lowest: int | None = None) -> None:
    """Require different stage ends, counted from the deepest: -1, -2, and so on.

    Args:
        name: The argument's name.
        numbers: The stage ends.
        lowest: The shallowest permitted number, such as -4; None permits every negative number.

    Raises:
        ValueError: There is no number, a number is out of range, or a number repeats.
    """
    if not numbers:
        raise ValueError(f"{name} contains no stage end: list numbers such as [-1, -2]")
    for number in numbers:
        if number >= 0 or (lowest is not None and number < lowest):
            scale = "-1, -2, and so on" if lowest is None else f"{lowest} to -1"
            raise ValueError(f"{name} count from the deepest stage end, {scale}; found {number}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must not repeat a stage end")


def require_layers(layers: Sequence[int] | str, activation: str) -> None:
    """Require map locations that MSDCRD can use.

    Args:
        layers: "last", "ends", or stage numbers from the front (-1 is the deepest stage).
        activation: "after" or "before" the activation that ends a map.

    Raises:
        ValueError: The list of stages is empty or has repeated numbers, or the maps before the
            activation are requested for stages by number, which only exist after it.
    """
    require_one_of(("after", "before"), activation=activation)
    if isinstance(layers, str):
        require_one_of(("last", "ends"), layers=layers)
        return
    if not layers:
        raise ValueError("layers contains no stage: write `last`, `ends`, or stage numbers")
    if len(set(layers)) < len(layers):
        raise ValueError("layers must not repeat a stage")
    if activation == "before":
        raise ValueError(
            "activation: before requires layers `last` or `ends`; "
            "the maps of stages by number are only available after their activation"
        )


def require_square_queries(queries: int, width: int, heads: int, *, stage_ends: int) -> None:
    """Require PAT's tokens to fill a square grid per stage end, and heads that divide the width.

    Args:
        queries: Tokens in the attention.
        width: Channels of a token.
        heads: Attention heads.
        stage_ends: Stage ends that share the tokens.

    Raises:
        ValueError: `queries` is not `stage_ends` times a square, or `heads` does not divide `width`.
    """
    side = math.isqrt(max(queries, 0) // stage_ends)
    if side < 1 or stage_ends * side**2 != queries:
        nearest = ", ".join(str(stage_ends * edge**2) for edge in (max(side, 1), max(side, 1) + 1))
        raise ValueError(f"queries must be four times a square, found {queries}; near are {nearest}")
    require_at_least(1, width=width, heads=heads)
    if width % heads:
        raise ValueError(f"heads ({heads}) must divide width ({width})")


def require_learnable_scale(scale: float, max_scale: float, *, learn_scale: bool) -> None:
    """Require DCD's learned factor to start where it has a gradient.

    Args:
        scale: The factor at the start.
        max_scale: The factor's upper bound; above it the gradient is 0.
        learn_scale: Whether the factor is learned.

    Raises:
        ValueError: A number is not above 0, or a learned factor starts above its bound.
    """
    require_above(0.0, scale=scale, max_scale=max_scale)
    if learn_scale and scale > max_scale:
        raise ValueError(f"scale {scale:g} starts above max_scale {max_scale:g}, where it cannot learn")


def require_odd(**arguments: int) -> None:
    """Require odd numbers.

    Args:
        **arguments: Values by argument name.

    Raises:
        ValueError: A value is even.
    """
    for name, value in arguments.items():
        if value % 2 == 0:
            raise ValueError(f"{name} must be odd, found {value}")
