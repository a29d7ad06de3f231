"""Facts about an architecture: its stages, its pooling, its classifier, the grid of its tokens."""

from __future__ import annotations

from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import nn

from pipeline.errors import ModelError

POOLINGS = (SelectAdaptivePool2d, nn.AdaptiveAvgPool2d)
"""The layers that can be a head's pooling."""

MAX_STAGE_ENDS = 4
"""At most this many stage ends are shown, the deepest ones."""

END_DEPTHS = (1 / 6, 1 / 3, 5 / 6, 1.0)
"""Relative depths of the stage ends of a network whose blocks all have the same map size.

Of 12 blocks these are 1, 3, 9 and 11, like in OFA-KD (Hao et al., 2023, official code).
"""


def stage_ends(model: nn.Module) -> tuple[int, ...]:
    """Return the numbers of the stages after which the map shrinks, and of the last stage.

    At most the `MAX_STAGE_ENDS` deepest are returned. For a network whose blocks all have the same map
    size, the stages at `END_DEPTHS` are returned.

    Raises:
        ModelError: The architecture does not show its stages.
    """
    _require_stages(model)
    sizes = [int(stage["reduction"]) for stage in feature_info(model)]
    if len(set(sizes)) == 1:
        return tuple(sorted({max(0, round(len(sizes) * depth) - 1) for depth in END_DEPTHS}))
    return tuple(n for n, size in enumerate(sizes) if sizes[n + 1 : n + 2] != [size])[-MAX_STAGE_ENDS:]


def stage_indices(model: nn.Module, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return stage numbers as indices from 0; negative numbers count from the deepest stage.

    Raises:
        ModelError: The architecture does not show its stages or has no stage of that number.
    """
    if not numbers:
        return ()
    _require_stages(model)
    name = type(model).__name__
    count = len(feature_info(model))
    for number in numbers:
        if not -count <= number < count:
            raise ModelError(
                f"{name} has no stage {number}",
                why=f"it has {count}: 0 to {count - 1}, or -1 for the deepest",
                hint="correct the key `layers`",
            )
    return tuple(number % count for number in numbers)


def _require_stages(model: nn.Module) -> None:
    if not hasattr(model, "forward_intermediates"):
        raise ModelError(
            f"{type(model).__name__} does not show its stages",
            why="only timm's architectures show their stages",
            hint="set `layers: last`, or choose one of timm's architectures",
        )


def feature_info(model: nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of the stages, shallowest first; an empty list if there is none."""
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    return info if isinstance(info, list) else []


def last_pooling(model: nn.Module) -> nn.Module | None:
    """Return the head's pooling: the last one registered (squeeze-and-excitation layers come before it)."""
    pooling: nn.Module | None = None
    inside: set[nn.Module] = set()
    for layer in model.modules():
        if layer in inside:
            continue
        if isinstance(layer, SelectAdaptivePool2d):
            inside.update(layer.modules())
            if not layer.is_identity():
                pooling = layer
        elif isinstance(layer, POOLINGS):
            pooling = layer
    return pooling


def is_nhwc(pooling: nn.Module | None) -> bool:
    """Return whether the pooling takes maps in the layout (B, H, W, C)."""
    inner = getattr(pooling, "pool", None)
    return getattr(inner, "input_fmt", "NCHW") == "NHWC" or getattr(inner, "dim", None) == (1, 2)


def token_grid(model: nn.Module, image: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of the final tokens.

    They come from the architecture's patch size or stride, not from the square root of the token count.

    Args:
        model: The network.
        image: Height and width of the image, pixels.
        tokens: The number of final tokens, without class and register tokens.

    Returns:
        Rows and columns; None if the architecture's values do not match the number of tokens.
    """
    embed = getattr(model, "patch_embed", None)
    candidates: list[tuple[int, int]] = []
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size(image)  # type: ignore[union-attr]
        candidates.append((int(rows), int(columns)))
    info = feature_info(model)
    if info:
        stride = int(info[-1]["reduction"])
        candidates.append((image[0] // stride, image[1] // stride))
        candidates.append((-(-image[0] // stride), -(-image[1] // stride)))
    return next((grid for grid in candidates if grid[0] * grid[1] == tokens), None)


def classifier_of(model: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the layer that computes the logits; None if it is not a single linear layer."""
    getter = getattr(model, "get_classifier", None)
    if getter is not None:
        classifier = getter()
    else:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        classifier = linear[-1] if linear else None
    return classifier if isinstance(classifier, nn.Linear | nn.Conv2d) else None
