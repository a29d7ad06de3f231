"""What is known of an architecture's parts: its stages, its pooling, the grid of its tokens."""

from __future__ import annotations

from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import nn

from pipeline.errors import ModelError

POOLINGS = (SelectAdaptivePool2d, nn.AdaptiveAvgPool2d)

ENDS = 4
"""At most so many stage ends are shown, the deepest ones."""

END_DEPTHS = (1 / 6, 1 / 3, 5 / 6, 1.0)
"""Where the ends of a network lie whose blocks are all of one size: of 12 blocks 1, 3, 9 and 11, as
OFA-KD takes them (Hao et al., 2023, official code)."""


def stage_ends(model: nn.Module) -> tuple[int, ...]:
    """The numbers of the stages after which the map shrinks, with the last, at most the `ENDS` deepest;
    of a network whose blocks are all of one size, those at `END_DEPTHS`.

    Raises ModelError if the architecture shows no stages.
    """
    _shows_stages(model)
    sizes = [int(stage["reduction"]) for stage in feature_info(model)]
    if len(set(sizes)) == 1:
        return tuple(sorted({max(0, round(len(sizes) * depth) - 1) for depth in END_DEPTHS}))
    return tuple(n for n, size in enumerate(sizes) if sizes[n + 1 : n + 2] != [size])[-ENDS:]


def stages_by_number(model: nn.Module, numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        return ()
    _shows_stages(model)
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


def _shows_stages(model: nn.Module) -> None:
    if not hasattr(model, "forward_intermediates"):
        raise ModelError(
            f"{type(model).__name__} shows no stages",
            why="only timm's architectures do",
            hint="set `layers: last`, or choose one of timm's architectures",
        )


def feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    return info if isinstance(info, list) else []


def last_pooling(model: nn.Module) -> nn.Module | None:
    """The pooling of the head: the last one registered (squeeze-and-excitation has its own before)."""
    found: nn.Module | None = None
    inside: set[nn.Module] = set()
    for layer in model.modules():
        if layer in inside:
            continue
        if isinstance(layer, SelectAdaptivePool2d):
            inside.update(layer.modules())
            if not layer.is_identity():
                found = layer
        elif isinstance(layer, POOLINGS):
            found = layer
    return found


def is_nhwc(pooling: nn.Module | None) -> bool:
    inner = getattr(pooling, "pool", None)
    return getattr(inner, "input_fmt", "NCHW") == "NHWC" or getattr(inner, "dim", None) == (1, 2)


def token_grid(model: nn.Module, image: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the final tokens, from the architecture's own account, never from a root."""
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
    """The layer that gives the classes' scores; None where it is not one linear layer."""
    getter = getattr(model, "get_classifier", None)
    if getter is not None:
        found = getter()
    else:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        found = linear[-1] if linear else None
    return found if isinstance(found, nn.Linear | nn.Conv2d) else None
