"""The layouts of stage outputs, and the replacement of the maps in them.

A stage's output is (B, C, H, W), (B, H, W, C) (Swin), or tokens (B, L, C), row by row, class and register
tokens first (vision transformers, Mixer). The layout follows from comparing the output with the
(B, C, H, W) map that the architecture shows for the stage, not from the architecture's name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.features import Change


@dataclass(frozen=True)
class Layout:
    """The layout of a stage's output.

    Attributes:
        kind: `nchw`, `nhwc` or `tokens`.
        prefix: For tokens, the number of class and register tokens, which come first.
        grid: For tokens, rows and columns of the other tokens.
    """

    kind: str
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)

    def to_map(self, output: Tensor) -> Tensor:
        """Return the map in a stage's output, (B, C, H, W)."""
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            # Row-major tokens: transpose, then view.
            return torch.unflatten(output[:, self.prefix :].transpose(1, 2), 2, self.grid)
        return output

    def replace_map(self, changed: Tensor, output: Tensor) -> Tensor:
        """Return a stage's output with the map `changed` (B, C, H, W); class and register tokens stay."""
        changed = changed.to(output.dtype)
        if self.kind == "nhwc":
            return changed.permute(0, 2, 3, 1).contiguous()
        if self.kind == "tokens":
            return torch.cat(
                [output[:, : self.prefix], changed.flatten(2).transpose(1, 2)], dim=1
            ).contiguous()
        return changed


def layout_of_stage(output: Any, shown: Tensor, model: str, stage: int) -> Layout:
    """Return the layout of a stage's output.

    Args:
        output: The output.
        shown: The stage's map (1, C, H, W).
        model: The model's name, for the error message.
        stage: The stage's number, for the error message.

    Raises:
        ModelError: The output does not contain the map.
    """
    layout = layout_between(output, shown)
    if layout is None:
        raise ModelError(
            f"the maps of {model} cannot be replaced",
            why=f"the output of its stage {stage} is not the map that it shows for that stage",
            hint="choose a network of another family for a method that runs the teacher again",
        )
    return layout


def layout_between(output: Any, shown: Tensor) -> Layout | None:
    """Return the layout in which the output contains the map `shown` (1, C, H, W); None if there is none."""
    height, width = shown.shape[-2:]
    candidates: list[Layout] = []
    if isinstance(output, Tensor) and output.ndim == 4:
        candidates = [Layout("nchw"), Layout("nhwc")]
    elif isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] >= height * width:
        candidates = [Layout("tokens", output.shape[1] - height * width, (height, width))]
    for layout in candidates:
        candidate = layout.to_map(output)
        if candidate.shape == shown.shape and torch.equal(candidate, shown):
            return layout
    return None


@contextlib.contextmanager
def record_stage_outputs(model: nn.Module, names: Mapping[int, str]) -> Iterator[dict[int, Any]]:
    """Record the outputs of the stages within the block.

    Args:
        model: The network.
        names: The path of each stage's module. Paths that do not exist are ignored: in some architectures
            the stages are not modules.

    Yields:
        The outputs so far, by stage number.
    """
    outputs: dict[int, Any] = {}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, n=number: outputs.__setitem__(n, output))
        for number, name in names.items()
        if name in modules
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def replace_stage_maps(
    model: nn.Module, names: Mapping[int, str], layouts: Mapping[int, Layout], changes: Mapping[int, Change]
) -> Iterator[None]:
    """Replace the map of stage n by changes[n](map) within the block.

    Use it for a single pass: a hook that stays would be copied with the model.

    Args:
        model: The network.
        names: The path of each stage's module.
        layouts: The layout of each stage's output.
        changes: The changes by stage number.

    Raises:
        ModelError: A change returns another shape; raised in the pass.
    """
    hooks = [
        model.get_submodule(names[number]).register_forward_hook(_replacing_hook(layouts[number], change))
        for number, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _replacing_hook(layout: Layout, change: Change) -> Any:
    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        before = layout.to_map(output)
        after = change(before)
        if after.shape != before.shape:
            raise ModelError(
                "a changed map does not have the shape of the network's map",
                why=f"it is {tuple(after.shape)}; expected {tuple(before.shape)}",
                hint="correct the change in the method",
            )
        return layout.replace_map(after, output)

    return replace
