"""The features that a distillation method gets: logits, pooled vector and maps of one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.errors import ModelError

NO_MAP = (0, 0, 0)
"""The (C, H, W) of a network that shows no map."""

Change = Callable[[Tensor], Tensor]
"""A function that replaces a map: (B, C, H, W) -> the same shape."""


@dataclass(frozen=True)
class Needs:
    """The maps that a method needs in addition to the map that feeds the pooling.

    Attributes:
        stages: Numbers of stages, in the architecture's order (0 the first, -1 the deepest).
        ends: Whether it needs the maps at the stage ends (`stage_ends`).
        before_activation: Whether it needs the ends and the final map also before their final activation.
        teacher_again: Whether it runs the teacher once more (`Teacher.again`); the teacher's features then
            cannot be computed once for all epochs.
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
"""Only the map that feeds the pooling."""


@dataclass(frozen=True)
class FeatureSpec:
    """The shapes of a network's `Features` for one image size.

    Attributes:
        classes: K, the number of classes.
        embedding: D, the length of the pooled vector.
        map: (C, H, W) of the map that feeds the pooling; `NO_MAP` if the network shows none.
        stages: (C, H, W) of each requested stage.
        head_is_linear_on_pooled: Whether the logits are a single linear layer on the spatial mean of the map;
            that layer then also classifies parts of the map.
        stage_numbers: The requested stage numbers, in the order of `stages`.
        ends: (C, H, W) of the stage ends, if requested, the shallowest first.
    """

    classes: int
    embedding: int
    map: tuple[int, int, int]
    stages: tuple[tuple[int, int, int], ...]
    head_is_linear_on_pooled: bool
    stage_numbers: tuple[int, ...] = ()
    ends: tuple[tuple[int, int, int], ...] = ()

    def shape_of(self, layer: int | None, role: str) -> tuple[int, int, int]:
        """Return (C, H, W) of a map.

        Args:
            layer: The stage's number; None: the map that feeds the pooling.
            role: `teacher` or `student`, for the error message.

        Raises:
            ModelError: The network does not show the map.
        """
        if layer is None:
            if self.map == NO_MAP:
                raise ModelError(
                    f"the {role}'s architecture shows no map that feeds its pooling",
                    why="its pooling is a function, not a layer, or its tokens have no grid",
                    hint="choose one of timm's architectures, or the method kd, which needs only logits",
                )
            return self.map
        return self.stages[self.stage_numbers.index(layer)]


@dataclass
class Features:
    """The features of one forward pass, in the pass's dtype.

    Attributes:
        logits: (B, K).
        embedding: (B, D), the pooled vector; for networks with a class token, that token.
        map: (B, C, H, W), the map that feeds the pooling, after its final norm and activation; (B, 0, 0, 0)
            if the network shows none.
        stages: The requested stages' maps, (B, C, H, W) each, in the order of `stage_numbers`.
        stage_numbers: The requested stage numbers.
        ends: The maps at the stage ends, (B, C, H, W) each, the shallowest first.
        map_before: `map` before its final activation; `map` itself if it has none; None if not requested.
        ends_before: The same for `ends`.
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
        """Return the map of a stage by its requested number; None: the map that feeds the pooling."""
        return self.map if number is None else self.stages[self.stage_numbers.index(number)]
