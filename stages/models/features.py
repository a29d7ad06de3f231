"""What a distillation method sees of a network: logits, pooled vector and maps of one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.errors import ModelError

NO_MAP = (0, 0, 0)

Change = Callable[[Tensor], Tensor]
"""What replaces a map: (B, C, H, W) -> the same shape."""


@dataclass(frozen=True)
class Needs:
    """Which maps of a network are to be shown beside the one that feeds its pooling.

    stages: by number, as the architecture counts (0 the first, -1 the deepest). ends: those at the
    ends of its stages (`stage_ends`). before_activation: the ends and the final map also as they are
    before the activation that ends them. teacher_again: the method runs the teacher once more
    (`Teacher.again`), so that its features cannot be computed once for all epochs.
    """

    stages: tuple[int, ...] = ()
    ends: bool = False
    before_activation: bool = False
    teacher_again: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            tuple(sorted({*self.stages, *other.stages})),
            self.ends or other.ends,
            self.before_activation or other.before_activation,
            self.teacher_again or other.teacher_again,
        )


FINAL_MAP = Needs()
"""No map but the one that feeds the pooling."""


@dataclass(frozen=True)
class FeatureSpec:
    """The shapes of a network's `Features` for one image size.

    classes: K. embedding: D. map: (C, H, W), or (0, 0, 0) where the network shows none. stages: (C, H,
    W) of each stage asked for, whose numbers, as they were asked, are `stage_numbers`. ends: (C, H, W)
    of the stage ends, if asked for, the shallowest first.
    head_is_linear_on_pooled: the logits are one linear layer on the spatial mean of the map, so that
    the layer may as well judge a part of the map.
    """

    classes: int
    embedding: int
    map: tuple[int, int, int]
    stages: tuple[tuple[int, int, int], ...]
    head_is_linear_on_pooled: bool
    stage_numbers: tuple[int, ...] = ()
    ends: tuple[tuple[int, int, int], ...] = ()

    def shape_of(self, layer: int | None, role: str) -> tuple[int, int, int]:
        """(C, H, W) of a stage by number, or of the map that feeds the pooling (None).

        Raises ModelError if the network (the `role`: teacher, student) does not show it.
        """
        if layer is None:
            if self.map == NO_MAP:
                raise ModelError(
                    f"the {role}'s architecture shows no map that feeds its pooling",
                    why="it pools by a function rather than a layer, or by a token without a grid",
                    hint="choose one of timm's architectures, or the method kd, which needs logits alone",
                )
            return self.map
        return self.stages[self.stage_numbers.index(layer)]


@dataclass
class Features:
    """What one forward pass showed, in the pass's own dtype.

    logits (B, K). embedding (B, D): the pooled vector (of a network that pools by a class token: that
    token). map (B, C, H, W): the map that feeds the pooling, after its final norm and activation; (B,
    0, 0, 0) where the network shows none. stages: (B, C, H, W) each, in the order of `stage_numbers`.
    ends: (B, C, H, W) each, the shallowest first. map_before, ends_before: the same maps before the
    activation that ends them (where none does, the maps themselves).
    """

    logits: Tensor
    embedding: Tensor
    map: Tensor
    stages: tuple[Tensor, ...] = ()
    stage_numbers: tuple[int, ...] = ()
    ends: tuple[Tensor, ...] = ()
    map_before: Tensor | None = None
    ends_before: tuple[Tensor, ...] = ()

    def layer(self, number: int | None) -> Tensor:
        """The map of a stage by the number it was asked by, or the one that feeds the pooling (None)."""
        return self.map if number is None else self.stages[self.stage_numbers.index(number)]
