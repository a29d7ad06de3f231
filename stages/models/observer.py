"""Runs a network once and shows what is inside: maps, pooled vector, logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.activation import Ending, ending_of, inputs_of, noting_activations
from stages.models.anatomy import (
    classifier_of,
    feature_info,
    is_nhwc,
    last_pooling,
    stage_ends,
    stages_by_number,
    token_grid,
)
from stages.models.features import FINAL_MAP, NO_MAP, Change, Features, FeatureSpec, Needs
from stages.models.layout import Layout, layout_of_stage, leaving, replaced
from stages.models.watching import evaluating, reading, reads_the_mean, watching


class Observer(nn.Module):
    """Runs a network once and shows its features.

    needs: which maps beside the final one. Stages are counted as the architecture names them (for a
    vision transformer: its blocks). They are as the stage leaves them; the deepest of a token network
    has gone through the final norm, as its map has.

    Raises ModelError for a stage the architecture does not have.
    """

    def __init__(self, model: nn.Module, needs: Needs = FINAL_MAP) -> None:
        super().__init__()
        self.model = model
        self.stage_numbers = needs.stages
        self._stages = stages_by_number(model, needs.stages)
        self._ends = stage_ends(model) if needs.ends else ()
        self._stage_modules = {n: str(stage["module"]) for n, stage in enumerate(feature_info(model))}
        self._layouts: dict[tuple[int, int], Mapping[int, Layout]] = {}
        self._before_activation = needs.before_activation
        self._endings: tuple[Ending | None, ...] | None = None
        self._pooling = last_pooling(model)
        self._in_parts = hasattr(model, "forward_features") and hasattr(model, "forward_head")

    def forward(self, images: Tensor) -> Features:
        """images: float, normalised, (B, C, H, W)."""
        if not self._before_activation:
            return self._run(images)
        endings = self._endings_for(images)
        with inputs_of(self.model, {ending for ending in endings if ending}) as seen:
            features = self._run(images)
        of_map, *of_ends = (seen[ending] if ending else None for ending in endings)
        return replace(
            features,
            map_before=features.map if of_map is None else of_map,
            ends_before=tuple(
                end if before is None else before for end, before in zip(features.ends, of_ends, strict=True)
            ),
        )

    def _endings_for(self, images: Tensor) -> tuple[Ending | None, ...]:
        """Which activation ends the map that feeds the pooling, and which each stage end; found by one
        pass of one image."""
        if self._endings is None:
            image = images[:1].detach()
            with noting_activations(self.model) as noted, evaluating(self.model), torch.no_grad():
                features = self._run(image)
            self._endings = tuple(ending_of(shown, noted) for shown in (features.map, *features.ends))
        return self._endings

    def _run(self, images: Tensor) -> Features:
        pooling: list[Tensor] = []
        vectors: list[Tensor] = []
        with watching(self.model, self._pooling, pooling, vectors, self._in_parts):
            if self._in_parts:
                final, inner = self._backbone(images)
                logits = self.model.forward_head(final)  # type: ignore[operator]
            else:
                final, inner = None, []
                logits = self.model(images)
        size = (images.shape[-2], images.shape[-1])
        if pooling:
            shown, embedding = self._pooled_map(pooling[0], final), pooling[1].flatten(1)
        elif isinstance(final, Tensor) and final.ndim == 3:
            shown, embedding = self._tokens(final, size)
        else:
            shown = logits.new_zeros(len(logits), *NO_MAP)
            embedding = vectors[0].flatten(1) if vectors else logits
        by_number = dict(zip(self._shown, inner, strict=True))
        normed = isinstance(final, Tensor) and (final.ndim == 3 or is_nhwc(self._pooling))
        deepest = len(feature_info(self.model)) - 1
        if normed and deepest in by_number and by_number[deepest].shape == shown.shape:
            by_number[deepest] = shown
        stages = tuple(by_number[number] for number in self._stages)
        ends = tuple(by_number[number] for number in self._ends)
        return Features(logits, embedding, shown, stages, self.stage_numbers, ends)

    def altered(self, images: Tensor, changes: Mapping[int, Change]) -> Features:
        """What the network shows when the map that leaves stage end n is replaced by changes[n](map).

        images: as `forward`'s. changes: by the place among the `ends`, (B, C, H, W) -> the same shape;
        of a token network's deepest end the map is changed before the final norm. The gradient goes
        through the network to whatever the changes were computed from.

        Raises ModelError if the observer does not show the ends, an end is not there, or the
        architecture's stages cannot be replaced.
        """
        absent = sorted(set(changes) - set(range(len(self._ends))))
        if absent:
            raise ModelError(
                f"{type(self.model).__name__} has no stage end {absent[0]} to replace",
                why=f"{len(self._ends)} stage ends are shown",
                hint="name ends among those in the method's needs (`ends`)",
            )
        layouts = self._layouts_for(images)
        numbers = {self._ends[end]: change for end, change in changes.items()}
        with replaced(self.model, self._stage_modules, layouts, numbers):
            return self(images)

    def _layouts_for(self, images: Tensor) -> Mapping[int, Layout]:
        """The layout of each stage end for images of this size, found by one pass of one image."""
        size = (images.shape[-2], images.shape[-1])
        if size not in self._layouts:
            image = images[:1].detach()
            with evaluating(self.model), torch.no_grad(), leaving(self.model, self._stage_modules) as left:
                shown = dict(zip(self._shown, self._backbone(image)[1], strict=True))
            name = type(self.model).__name__
            self._layouts[size] = {n: layout_of_stage(left.get(n), shown[n], name, n) for n in self._ends}
        return self._layouts[size]

    def spec(self, image_size: int, channels: int) -> FeatureSpec:
        """The shapes, found by running one image in eval mode; the network is left as it was."""
        image = self._image(image_size, channels)
        with evaluating(self), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            if self._before_activation:
                self._endings_for(image)
            with reading(classifier_of(self.model)) as inputs:
                features = self(image)
        channels_, height, width = features.map.shape[1:]
        return FeatureSpec(
            classes=features.logits.shape[1],
            embedding=features.embedding.shape[1],
            map=(channels_, height, width),
            stages=tuple((stage.shape[1], stage.shape[2], stage.shape[3]) for stage in features.stages),
            head_is_linear_on_pooled=reads_the_mean(inputs, features.map),
            stage_numbers=self.stage_numbers,
            ends=tuple((end.shape[1], end.shape[2], end.shape[3]) for end in features.ends),
        )

    def require_alterable(self, image_size: int, channels: int) -> None:
        """Raises ModelError, as `altered` would, if the maps at the stage ends cannot be replaced."""
        self._layouts_for(self._image(image_size, channels))

    def _image(self, side: int, channels: int) -> Tensor:
        """(1, channels, side, side), not all equal; no noise from the generator, whose state belongs to
        the training."""
        device = next(self.model.parameters()).device
        ramp = torch.arange(channels * side**2, device=device, dtype=torch.float32)
        return torch.sin(ramp * 0.7).reshape(1, channels, side, side)

    def local_logits(self, vectors: Tensor) -> Tensor:
        """The network's own classifier on pooled vectors: (B, M, C) -> (B, M, K), float32.

        Only for a head that is linear on the pooled map (`FeatureSpec.head_is_linear_on_pooled`):
        then the mean over a full grid of windows is the network's own logit. Raises ModelError
        otherwise.
        """
        classifier = classifier_of(self.model)
        if classifier is None or classifier.weight.flatten(1).shape[1] != vectors.shape[-1]:
            raise ModelError(
                "the network's classifier cannot judge parts of its map",
                why="its head is not one linear layer on the pooled map",
                hint="set `selection: dedup` or `none` for msdcrd",
            )
        weight, bias = classifier.weight.flatten(1).float(), classifier.bias
        with torch.autocast(vectors.device.type, enabled=False):
            return nn.functional.linear(vectors.float(), weight, None if bias is None else bias.float())

    @property
    def _shown(self) -> tuple[int, ...]:
        return tuple(sorted({*self._stages, *self._ends}))

    def _backbone(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        if not self._shown:
            return self.model.forward_features(images), []  # type: ignore[operator]
        final, inner = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=list(self._shown), norm=False, output_fmt="NCHW"
        )
        return final, inner

    def _pooled_map(self, seen: Tensor, final: Any) -> Tensor:
        if getattr(self._pooling, "pool", None) is not None and is_nhwc(self._pooling):
            seen = seen.permute(0, 3, 1, 2)
        if isinstance(final, Tensor) and final.ndim == 4 and not is_nhwc(self._pooling):
            # VGG's head folds the map into one vector before its pooling: the regions are in `final`.
            return seen if seen.shape[-2:] == final.shape[-2:] else final
        return seen

    def _tokens(self, tokens: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> map (B, C, H, W) without class and register tokens, embedding (B, C)."""
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        patches = tokens[:, prefix:]
        grid = token_grid(self.model, image, patches.shape[1])
        if getattr(self.model, "global_pool", "") == "avg":
            whole = getattr(self.model, "pool_include_prefix", False)
            embedding = (tokens if whole else patches).mean(1)
        elif hasattr(self.model, "head_dist"):
            embedding = tokens[:, :2].mean(1)
        else:
            embedding = tokens[:, 0]
        if grid is None:
            return tokens.new_zeros(len(tokens), *NO_MAP), embedding
        # Row-major tokens: transpose, then view.
        return patches.transpose(1, 2).unflatten(2, grid), embedding
