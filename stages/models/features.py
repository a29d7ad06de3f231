"""What a distillation method sees of a network: logits, pooled vector and maps of one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from pipeline.errors import ModelError

POOLINGS = (SelectAdaptivePool2d, nn.AdaptiveAvgPool2d)
NO_MAP = (0, 0, 0)

ENDS = 4
"""At most so many stage ends are shown, the deepest ones."""

END_DEPTHS = (1 / 6, 1 / 3, 5 / 6, 1.0)
"""Where the ends of a network lie whose blocks are all of one size: of 12 blocks 1, 3, 9 and 11, as
OFA-KD takes them (Hao et al., 2023, official code)."""

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
                    mend="choose one of timm's architectures, or the method kd, which needs logits alone",
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


class Observer(nn.Module):
    """Runs a network once and shows its features.

    needs: which maps beside the final one. Stages are counted as the architecture names them (for a
    vision transformer: its blocks). They are as the stage leaves them; the deepest of a token network
    has gone through the final norm, as its map has.

    Raises ModelError for a stage the architecture does not have.
    """

    def __init__(self, model: nn.Module, needs: Needs = Needs()) -> None:
        super().__init__()
        self.model = model
        self.stage_numbers = needs.stages
        self._stages = _resolved(model, needs.stages)
        self._ends = stage_ends(model) if needs.ends else ()
        self._pooling = _last_pooling(model)
        self._in_parts = hasattr(model, "forward_features") and hasattr(model, "forward_head")

    def forward(self, images: Tensor) -> Features:
        """images: float, normalised, (B, C, H, W)."""
        pooling: list[Tensor] = []
        vectors: list[Tensor] = []
        with _watching(self.model, self._pooling, pooling, vectors, self._in_parts):
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
        if isinstance(final, Tensor) and final.ndim == 3 and shown.numel():
            deepest = len(_feature_info(self.model)) - 1
            if deepest in by_number and by_number[deepest].shape == shown.shape:
                by_number[deepest] = shown
        stages = tuple(by_number[number] for number in self._stages)
        ends = tuple(by_number[number] for number in self._ends)
        return Features(logits, embedding, shown, stages, self.stage_numbers, ends)

    def spec(self, image_size: int, channels: int) -> FeatureSpec:
        """The shapes, found by running one image in eval mode; the network is left as it was."""
        inputs: list[Tensor] = []
        classifier = self._classifier()
        hook = None
        if classifier is not None:
            hook = classifier.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        modes = {module: module.training for module in self.modules()}
        device = next(self.model.parameters()).device
        # No noise from the generator, whose state belongs to the training.
        ramp = torch.arange(channels * image_size**2, device=device, dtype=torch.float32)
        image = torch.sin(ramp * 0.7).reshape(1, channels, image_size, image_size)
        self.eval()
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                features = self(image)
        finally:
            if hook is not None:
                hook.remove()
            for module, mode in modes.items():
                module.training = mode
        channels_, height, width = features.map.shape[1:]
        return FeatureSpec(
            classes=features.logits.shape[1],
            embedding=features.embedding.shape[1],
            map=(channels_, height, width),
            stages=tuple((stage.shape[1], stage.shape[2], stage.shape[3]) for stage in features.stages),
            head_is_linear_on_pooled=_reads_the_mean(inputs, features.map),
            stage_numbers=self.stage_numbers,
            ends=tuple((end.shape[1], end.shape[2], end.shape[3]) for end in features.ends),
        )

    def local_logits(self, vectors: Tensor) -> Tensor:
        """The network's own classifier on pooled vectors: (B, M, C) -> (B, M, K), float32.

        Only for a head that is linear on the pooled map (`FeatureSpec.head_is_linear_on_pooled`):
        then the mean over a full grid of windows is the network's own logit. Raises ModelError
        otherwise.
        """
        classifier = self._classifier()
        if classifier is None or classifier.weight.flatten(1).shape[1] != vectors.shape[-1]:
            raise ModelError(
                "the network's classifier cannot judge parts of its map",
                why="its head is not one linear layer on the pooled map",
                mend="set `selection: dedup` or `none` for msdcrd",
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
        if getattr(self._pooling, "pool", None) is not None and _is_nhwc(self._pooling):
            seen = seen.permute(0, 3, 1, 2)
        if isinstance(final, Tensor) and final.ndim == 4 and not _is_nhwc(self._pooling):
            # VGG's head folds the map into one vector before its pooling: the regions are in `final`.
            return seen if seen.shape[-2:] == final.shape[-2:] else final
        return seen

    def _tokens(self, tokens: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> map (B, C, H, W) without class and register tokens, embedding (B, C)."""
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        patches = tokens[:, prefix:]
        grid = _grid(self.model, image, patches.shape[1])
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

    def _classifier(self) -> nn.Linear | nn.Conv2d | None:
        getter = getattr(self.model, "get_classifier", None)
        if getter is not None:
            found = getter()
        else:
            linear = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
            found = linear[-1] if linear else None
        return found if isinstance(found, nn.Linear | nn.Conv2d) else None


@contextlib.contextmanager
def _watching(
    model: nn.Module, pooling: nn.Module | None, seen: list[Tensor], vectors: list[Tensor], in_parts: bool
) -> Iterator[None]:
    """Notes what goes into and comes out of the pooling, or, without one, into the last linear layer.

    For one pass only: a hook that stays would be copied with the model (an EMA), and would hold on to
    the pass's graph."""
    if pooling is not None:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs[0].ndim == 4:
                seen[:] = [inputs[0], output]

        hook = pooling.register_forward_hook(note)
    else:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            yield
            return
        hook = linear[-1].register_forward_pre_hook(
            lambda _, inputs: vectors.__setitem__(slice(None), inputs)
        )
    try:
        yield
    finally:
        hook.remove()


def _last_pooling(model: nn.Module) -> nn.Module | None:
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


def _is_nhwc(pooling: nn.Module | None) -> bool:
    inner = getattr(pooling, "pool", None)
    return getattr(inner, "input_fmt", "NCHW") == "NHWC" or getattr(inner, "dim", None) == (1, 2)


def _grid(model: nn.Module, image: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the final tokens, from the architecture's own account, never from a root."""
    embed = getattr(model, "patch_embed", None)
    candidates: list[tuple[int, int]] = []
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size(image)  # type: ignore[union-attr]
        candidates.append((int(rows), int(columns)))
    info = _feature_info(model)
    if info:
        stride = int(info[-1]["reduction"])
        candidates.append((image[0] // stride, image[1] // stride))
        candidates.append((-(-image[0] // stride), -(-image[1] // stride)))
    return next((grid for grid in candidates if grid[0] * grid[1] == tokens), None)


def _reads_the_mean(inputs: list[Tensor], shown: Tensor) -> bool:
    """Whether the classifier's one input is the map's spatial mean."""
    if len(inputs) != 1 or shown.numel() == 0 or shown.is_meta:
        return False
    vector, mean = inputs[0].flatten(1), shown.mean((2, 3))
    if vector.shape != mean.shape or not bool(mean.abs().max() > 0):
        return False
    return bool(torch.allclose(vector, mean, rtol=1e-3, atol=1e-5 * float(mean.abs().max())))


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    return info if isinstance(info, list) else []


def stage_ends(model: nn.Module) -> tuple[int, ...]:
    """The numbers of the stages after which the map shrinks, with the last, at most the `ENDS` deepest;
    of a network whose blocks are all of one size, those at `END_DEPTHS`.

    Raises ModelError if the architecture shows no stages.
    """
    _shows_stages(model)
    sizes = [int(stage["reduction"]) for stage in _feature_info(model)]
    if len(set(sizes)) == 1:
        return tuple(sorted({max(0, round(len(sizes) * depth) - 1) for depth in END_DEPTHS}))
    return tuple(n for n, size in enumerate(sizes) if sizes[n + 1 : n + 2] != [size])[-ENDS:]


def _resolved(model: nn.Module, numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        return ()
    _shows_stages(model)
    name = type(model).__name__
    count = len(_feature_info(model))
    for number in numbers:
        if not -count <= number < count:
            raise ModelError(
                f"{name} has no stage {number}",
                why=f"it has {count}: 0 to {count - 1}, or -1 for the deepest",
                mend="correct the key `layers`",
            )
    return tuple(number % count for number in numbers)


def _shows_stages(model: nn.Module) -> None:
    if not hasattr(model, "forward_intermediates"):
        raise ModelError(
            f"{type(model).__name__} shows no stages",
            why="only timm's architectures do",
            mend="set `layers: last`, or choose one of timm's architectures",
        )
