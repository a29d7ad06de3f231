"""What the CIFAR networks share: a chain of stages that speaks timm's interface, and its small parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timm.layers import SelectAdaptivePool2d, create_classifier
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """A part of the chain whose output is shown as a feature map.

    parts: names of the children it runs, in order. channels: of its output. reduction: how many
    pixels of the image one place of its output stands for, along a side.
    """

    parts: tuple[str, ...]
    channels: int
    reduction: int


class CifarNet(nn.Module):
    """A classifier made of stages, a tail, global pooling and one linear layer.

    parts: the children by name, in the order in which they run. stages: counted from 0, the stem, as
    the codes of CRD and its successors count their features. tail: children between the last stage
    and the pooling (final norm and activation, or a 1x1 convolution), so that the pooling reads the
    very map whose mean is the penultimate vector. features: channels of that map.

    The interface is that of timm's models: `forward_features`, `forward_head`,
    `forward_intermediates`, `feature_info`, `get_classifier`, `reset_classifier`. No activation works
    in place: a map that was shown stays as it was.
    """

    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        stages: Sequence[Stage],
        *,
        tail: tuple[str, ...] = (),
        features: int,
        num_classes: int,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.stages = tuple(stages)
        self.tail = tail
        self.num_features = self.head_hidden_size = features
        self.feature_info = [
            {"num_chs": stage.channels, "reduction": stage.reduction, "module": stage.parts[-1]}
            for stage in stages
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with random weights; 0 classes: none, the pooled vector comes out."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the map that feeds the pooling (B, features, h, w)."""
        for stage in self.stages:
            x = self._run(stage.parts, x)
        return self._run(self.tail, x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The final map, and the maps (B, C, h, w) that leave the stages `indices`, shallowest first.

        indices: numbers of stages, negative from the end; an int: the last so many; None: all.
        norm: the last stage's map has gone through the tail, if that keeps the number of channels.
        stop_early: run no further than the deepest stage asked for; only with `intermediates_only`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"the maps are NCHW, not {output_fmt}")
        taken = self._taken(indices)
        inner: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            if stop_early and intermediates_only and number > max(taken):
                break
            x = self._run(stage.parts, x)
            if number in taken:
                inner.append(x)
        if norm and len(self.stages) - 1 in taken and self.stages[-1].channels == self.num_features:
            inner[-1] = self._run(self.tail, x)
        return inner if intermediates_only else (self._run(self.tail, x), inner)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The final map to the logits (B, classes); `pre_logits`: to the pooled vector."""
        vector = self.global_pool(x)
        return vector if pre_logits else self.fc(vector)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _run(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def _taken(self, indices: int | Sequence[int] | None) -> frozenset[int]:
        count = len(self.stages)
        numbers = range(-count, 0) if indices is None else indices
        if isinstance(numbers, int):
            numbers = range(-numbers, 0)
        if not numbers or not all(-count <= number < count for number in numbers):
            raise ValueError(f"stages are 0 to {count - 1}, or counted from the end: not {indices}")
        return frozenset(number % count for number in numbers)


class ChannelShuffle(nn.Module):
    """(B, C, H, W) -> the same shape: channel i of group g comes to place i * groups + g.

    Zhang et al. (2018, figure 1c).
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution without bias that keeps the map's size at stride 1, norm, and ReLU if `act`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


def initialised(model: CifarNet, *, classifier_std: float | None = None) -> CifarNet:
    """The model with convolutions drawn by He et al. (2015), normal, fan out; their biases are zero.

    classifier_std: deviation of the classifier's weights, its bias is zero; None: as PyTorch draws them.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if classifier_std is not None and isinstance(model.fc, nn.Linear):
        nn.init.normal_(model.fc.weight, std=classifier_std)
        nn.init.zeros_(model.fc.bias)
    return model
