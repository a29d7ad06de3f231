"""The common parts of the CIFAR networks: a chain of stages with timm's interface, and small layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.layers import SelectAdaptivePool2d, create_classifier
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """A part of the chain whose output is a feature map.

    Attributes:
        parts: Names of its child modules, in the order of the pass.
        channels: Channels of its output.
        reduction: Its output's stride, in pixels of the image.
    """

    parts: tuple[str, ...]
    channels: int
    reduction: int


class CifarNet(nn.Module):
    """A classifier of stages, a tail, global pooling and a linear layer.

    The interface is that of timm's models: `forward_features`, `forward_head`,
    `forward_intermediates`, `feature_info`, `get_classifier`, `reset_classifier`. No activation works
    in place, so returned maps do not change.

    Args:
        parts: The child modules by name, in the order of the pass.
        stages: The stages; stage 0 is the stem, like in the codes of CRD and its successors.
        tail: Names of the children between the last stage and the pooling (final norm and activation, or a
            1x1 convolution). The mean of the pooling's input is the penultimate vector.
        features: Channels of the pooling's input.
        num_classes: The number of classes.
        global_pool: timm's name of the pooling.
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
        """Replace the classifier by one with random weights; 0 classes: no classifier."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the pooling's input (B, features, h, w)."""
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
        """Return the final map and the stages' maps.

        Args:
            x: Images (B, C, H, W).
            indices: Numbers of stages, negative ones from the end; an int: that many last stages; None: all.
            norm: Apply the tail to the last stage's map, if the tail does not change the channels.
            stop_early: Stop after the deepest requested stage; only with `intermediates_only`.
            output_fmt: Only `NCHW`.
            intermediates_only: Return only the stages' maps.

        Returns:
            The final map (B, features, h, w), and the maps (B, C, h, w) of the stages, the shallowest first.

        Raises:
            ValueError: There is no such stage, or `output_fmt` is not `NCHW`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"the maps are NCHW, not {output_fmt}")
        requested = self._requested(indices)
        inner: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            if stop_early and intermediates_only and number > max(requested):
                break
            x = self._run(stage.parts, x)
            if number in requested:
                inner.append(x)
        if norm and len(self.stages) - 1 in requested and self.stages[-1].channels == self.num_features:
            inner[-1] = self._run(self.tail, x)
        return inner if intermediates_only else (self._run(self.tail, x), inner)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the final map to the logits (B, classes), or with `pre_logits` to the pooled vector."""
        vector: Tensor = self.global_pool(x)
        if pre_logits:
            return vector
        logits: Tensor = self.fc(vector)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def _run(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def _requested(self, indices: int | Sequence[int] | None) -> frozenset[int]:
        count = len(self.stages)
        numbers = range(-count, 0) if indices is None else indices
        if isinstance(numbers, int):
            numbers = range(-numbers, 0)
        if not numbers or not all(-count <= number < count for number in numbers):
            raise ValueError(f"stages are 0 to {count - 1}, or counted from the end: not {indices}")
        return frozenset(number % count for number in numbers)


class ChannelShuffle(nn.Module):
    """Channel shuffle, (B, C, H, W) -> the same shape: channel i of group g becomes channel i * groups + g.

    Zhang et al. (2018, figure 1c).
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Shuffle the channels."""
        return torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, a norm, and a ReLU if `act`; at stride 1 the map keeps its size."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


def initialise(model: CifarNet, *, classifier_std: float | None = None) -> CifarNet:
    """Initialise the convolutions like He et al. (2015), normal, fan out, with biases of zero.

    Args:
        model: The network; it is changed in place.
        classifier_std: Standard deviation of the classifier's weights, with a bias of zero; None: PyTorch's
            default initialisation.

    Returns:
        The network.
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
