"""A network wrapped to return its features: maps, pooled vector, logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.activation import (
    ActivationCall,
    final_activation,
    record_activation_inputs,
    record_activations,
)
from stages.models.architecture import (
    classifier_of,
    feature_info,
    is_nhwc,
    last_pooling,
    stage_ends,
    stage_indices,
    token_grid,
)
from stages.models.features import FINAL_MAP, NO_MAP, Change, Features, FeatureSpec, Needs
from stages.models.layout import Layout, layout_of_stage, record_stage_outputs, replace_stage_maps
from stages.models.recording import evaluation_mode, is_spatial_mean, record_inputs, record_pooling


class Observer(nn.Module):
    """A network whose forward pass returns its features.

    Stages have the architecture's numbers (for a vision transformer: its blocks). A stage's map is the
    stage's output; the deepest stage of a token network is taken after the final norm, like its map.

    Args:
        model: The network.
        needs: The maps to return in addition to the final one.

    Raises:
        ModelError: The architecture does not have a requested stage.
    """

    def __init__(self, model: nn.Module, needs: Needs = FINAL_MAP) -> None:
        super().__init__()
        self.model = model
        self.stage_numbers = needs.stages
        self._stages = stage_indices(model, needs.stages)
        self._ends = stage_ends(model) if needs.ends else ()
        self._stage_modules = {n: str(stage["module"]) for n, stage in enumerate(feature_info(model))}
        self._layouts: dict[tuple[int, int], Mapping[int, Layout]] = {}
        self._before_activation = needs.before_activation
        self._activations: tuple[ActivationCall | None, ...] | None = None
        self._pooling = last_pooling(model)
        self._has_separate_head = hasattr(model, "forward_features") and hasattr(model, "forward_head")

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised float images (B, C, H, W)."""
        if not self._before_activation:
            return self._run(images)
        activations = self._activations_for(images)
        calls = {activation for activation in activations if activation}
        with record_activation_inputs(self.model, calls) as inputs:
            features = self._run(images)
        map_before, *ends_before = (inputs[activation] if activation else None for activation in activations)
        return replace(
            features,
            map_before=features.map if map_before is None else map_before,
            ends_before=tuple(
                end if before is None else before
                for end, before in zip(features.ends, ends_before, strict=True)
            ),
        )

    def _activations_for(self, images: Tensor) -> tuple[ActivationCall | None, ...]:
        """Return the final activations of the map that feeds the pooling and of each stage end.

        A pass of the first image determines them.
        """
        if self._activations is None:
            image = images[:1].detach()
            with record_activations(self.model) as recorded, evaluation_mode(self.model), torch.no_grad():
                features = self._run(image)
            maps = (features.map, *features.ends)
            self._activations = tuple(final_activation(feature_map, recorded) for feature_map in maps)
        return self._activations

    def _run(self, images: Tensor) -> Features:
        pooling: list[Tensor] = []
        vectors: list[Tensor] = []
        with record_pooling(self.model, self._pooling, pooling, vectors):
            if self._has_separate_head:
                final, inner = self._backbone(images)
                logits = self.model.forward_head(final)  # type: ignore[operator]
            else:
                final, inner = None, []
                logits = self.model(images)
        size = (images.shape[-2], images.shape[-1])
        if pooling:
            feature_map, embedding = self._pooled_map(pooling[0], final), pooling[1].flatten(1)
        elif isinstance(final, Tensor) and final.ndim == 3:
            feature_map, embedding = self._map_and_embedding(final, size)
        else:
            feature_map = logits.new_zeros(len(logits), *NO_MAP)
            embedding = vectors[0].flatten(1) if vectors else logits
        by_number = dict(zip(self._shown, inner, strict=True))
        normed = isinstance(final, Tensor) and (final.ndim == 3 or is_nhwc(self._pooling))
        deepest = len(feature_info(self.model)) - 1
        if normed and deepest in by_number and by_number[deepest].shape == feature_map.shape:
            by_number[deepest] = feature_map
        stages = tuple(by_number[number] for number in self._stages)
        ends = tuple(by_number[number] for number in self._ends)
        return Features(logits, embedding, feature_map, stages, self.stage_numbers, ends)

    def altered(self, images: Tensor, changes: Mapping[int, Change]) -> Features:
        """Return the features of a pass in which changes[n](map) replaces the map of stage end n.

        The gradient flows through the network to the inputs of the changes.

        Args:
            images: The images, like in `forward`.
            changes: The changes by index in `ends`, (B, C, H, W) -> the same shape. The deepest end of a
                token network is changed before the final norm.

        Raises:
            ModelError: The observer does not return the ends, there is no such end, or the architecture's
                stages cannot be replaced.
        """
        absent = sorted(set(changes) - set(range(len(self._ends))))
        if absent:
            raise ModelError(
                f"{type(self.model).__name__} has no stage end {absent[0]} to replace",
                why=f"{len(self._ends)} stage ends are shown",
                hint="request the ends in the method's needs (`ends`), and use their indices",
            )
        layouts = self._layouts_for(images)
        numbers = {self._ends[end]: change for end, change in changes.items()}
        with replace_stage_maps(self.model, self._stage_modules, layouts, numbers):
            features: Features = self(images)
        return features

    def _layouts_for(self, images: Tensor) -> Mapping[int, Layout]:
        """Return the layout of each stage end for this image size; a pass of one image determines it."""
        size = (images.shape[-2], images.shape[-1])
        if size not in self._layouts:
            image = images[:1].detach()
            with (
                evaluation_mode(self.model),
                torch.no_grad(),
                record_stage_outputs(self.model, self._stage_modules) as outputs,
            ):
                maps = dict(zip(self._shown, self._backbone(image)[1], strict=True))
            name = type(self.model).__name__
            self._layouts[size] = {n: layout_of_stage(outputs.get(n), maps[n], name, n) for n in self._ends}
        return self._layouts[size]

    def spec(self, image_size: int, channels: int) -> FeatureSpec:
        """Return the shapes of the features.

        A pass of one image in eval mode determines them; the network does not change.

        Args:
            image_size: Side of the network's input, pixels.
            channels: Channels of the images.
        """
        image = self._probe_image(image_size, channels)
        with evaluation_mode(self), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            if self._before_activation:
                self._activations_for(image)
            with record_inputs(classifier_of(self.model)) as inputs:
                features = self(image)
        map_channels, height, width = features.map.shape[1:]
        return FeatureSpec(
            classes=features.logits.shape[1],
            embedding=features.embedding.shape[1],
            map=(map_channels, height, width),
            stages=tuple((stage.shape[1], stage.shape[2], stage.shape[3]) for stage in features.stages),
            head_is_linear_on_pooled=is_spatial_mean(inputs, features.map),
            stage_numbers=self.stage_numbers,
            ends=tuple((end.shape[1], end.shape[2], end.shape[3]) for end in features.ends),
        )

    def require_alterable(self, image_size: int, channels: int) -> None:
        """Check that the maps at the stage ends can be replaced.

        Raises:
            ModelError: They cannot; `altered` would raise it too.
        """
        self._layouts_for(self._probe_image(image_size, channels))

    def _probe_image(self, side: int, channels: int) -> Tensor:
        """Return an image (1, channels, side, side) whose pixels differ.

        It does not use the random generator, whose state belongs to the training.
        """
        device = next(self.model.parameters()).device
        ramp = torch.arange(channels * side**2, device=device, dtype=torch.float32)
        return torch.sin(ramp * 0.7).reshape(1, channels, side, side)

    def local_logits(self, vectors: Tensor) -> Tensor:
        """Apply the network's classifier to pooled vectors.

        For a head that is linear on the pooled map (`FeatureSpec.head_is_linear_on_pooled`), the mean over a
        full grid of windows is the network's logit.

        Args:
            vectors: (B, M, C).

        Returns:
            Logits (B, M, K), float32.

        Raises:
            ModelError: The head is not linear on the pooled map.
        """
        classifier = classifier_of(self.model)
        if classifier is None or classifier.weight.flatten(1).shape[1] != vectors.shape[-1]:
            raise ModelError(
                "the network's classifier cannot classify parts of its map",
                why="its head is not a single linear layer on the pooled map",
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

    def _pooled_map(self, pooling_input: Tensor, final: Any) -> Tensor:
        if getattr(self._pooling, "pool", None) is not None and is_nhwc(self._pooling):
            pooling_input = pooling_input.permute(0, 3, 1, 2)
        if isinstance(final, Tensor) and final.ndim == 4 and not is_nhwc(self._pooling):
            # VGG's head reduces the map to a vector before its pooling: the map is `final`.
            return pooling_input if pooling_input.shape[-2:] == final.shape[-2:] else final
        return pooling_input

    def _map_and_embedding(self, tokens: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Split tokens (B, L, C) into the map (B, C, H, W), without class and register tokens, and (B, C)."""
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
        return torch.unflatten(patches.transpose(1, 2), 2, grid), embedding
