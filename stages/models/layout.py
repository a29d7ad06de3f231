"""In which layout an architecture's stages leave their maps, and how to replace such a map.

Stages leave (B, C, H, W), (B, H, W, C) (Swin), or tokens (B, L, C), row by row, class and register
tokens first (vision transformers, Mixer). Which it is, is found by comparing what leaves the stage with the
(B, C, H, W) that the architecture shows of it, not by the architecture's name.
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
    """How a stage's own output lies. kind: `nchw`, `nhwc` or `tokens`.

    For tokens: prefix of them are no places (class, register); grid: rows and columns of the others.
    """

    kind: str
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)

    def map_of(self, output: Tensor) -> Tensor:
        """The stage's output as (B, C, H, W)."""
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            # Row-major tokens: transpose, then view.
            return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return output

    def put(self, changed: Tensor, output: Tensor) -> Tensor:
        """The output with its map replaced by (B, C, H, W); class and register tokens stay."""
        changed = changed.to(output.dtype)
        if self.kind == "nhwc":
            return changed.permute(0, 2, 3, 1).contiguous()
        if self.kind == "tokens":
            return torch.cat(
                [output[:, : self.prefix], changed.flatten(2).transpose(1, 2)], dim=1
            ).contiguous()
        return changed


def layout_of_stage(output: Any, shown: Tensor, model: str, stage: int) -> Layout:
    """`layout_between` what leaves a stage and its map. Raises ModelError, naming the model and the
    stage, if there is none."""
    layout = layout_between(output, shown)
    if layout is None:
        raise ModelError(
            f"the maps of {model} cannot be replaced",
            why=f"what leaves its stage {stage} is not the map that it shows of it",
            hint="choose a network of another family for a method that runs the teacher again",
        )
    return layout


def layout_between(output: Any, shown: Tensor) -> Layout | None:
    """The layout by which the output becomes the map `shown` (1, C, H, W); None if there is none."""
    height, width = shown.shape[-2:]
    tried: list[Layout] = []
    if isinstance(output, Tensor) and output.ndim == 4:
        tried = [Layout("nchw"), Layout("nhwc")]
    elif isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] >= height * width:
        tried = [Layout("tokens", output.shape[1] - height * width, (height, width))]
    for layout in tried:
        found = layout.map_of(output)
        if found.shape == shown.shape and torch.equal(found, shown):
            return layout
    return None


def layout_of(stage: int, left: Mapping[int, Any], shown: Tensor, model: str) -> Layout:
    """As `layout_between`, of what `leaving` has noted. Raises ModelError, naming the model and the
    stage, if there is none."""
    layout = layout_between(left.get(stage), shown)
    if layout is None:
        raise ModelError(
            f"the maps of {model} cannot be replaced",
            why=f"what leaves its stage {stage} is not the map that it shows of it",
            hint="choose a network of another family for a method that runs the teacher again",
        )
    return layout


@contextlib.contextmanager
def leaving(model: nn.Module, names: Mapping[int, str]) -> Iterator[dict[int, Any]]:
    """While it lasts, notes what leaves each stage. names: the module of each; one that is not there is
    passed over (an architecture that has its stages as a mere list of layers)."""
    left: dict[int, Any] = {}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, n=number: left.__setitem__(n, output))
        for number, name in names.items()
        if name in modules
    ]
    try:
        yield left
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def replaced(
    model: nn.Module, names: Mapping[int, str], layouts: Mapping[int, Layout], changes: Mapping[int, Change]
) -> Iterator[None]:
    """While it lasts, the map that leaves stage n is changes[n](map). For one pass only: a hook that
    stays would be copied with the model.

    names: the module of each stage. Raises ModelError, in the pass, for a change of another shape.
    """
    hooks = [
        model.get_submodule(names[number]).register_forward_hook(_hook(layouts[number], change))
        for number, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(layout: Layout, change: Change) -> Any:
    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        before = layout.map_of(output)
        after = change(before)
        if after.shape != before.shape:
            raise ModelError(
                "a replaced map has another shape than the network's",
                why=f"{tuple(after.shape)} in place of {tuple(before.shape)}",
                hint="correct the method's change",
            )
        return layout.put(after, output)

    return replace
