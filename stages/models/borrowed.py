"""SimKD's student: its own backbone, a projector, and the teacher's classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.architecture import classifier_of, feature_info
from stages.models.layout import Layout, layout_between
from stages.models.observer import Observer
from stages.models.recording import evaluation_mode
from stages.models.resampling import AreaResample, smaller


@dataclass(frozen=True)
class BorrowedHeadSpec:
    """The facts of a borrowed head in a model card, in addition to the backbone's.

    Attributes:
        channels: Channels of the teacher's final map.
        height: Its height.
        width: Its width.
        reduction: The projector has `channels / reduction` inner channels.
        bias: Whether the classifier has a bias.
    """

    channels: int
    height: int
    width: int
    reduction: int
    bias: bool

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> BorrowedHeadSpec:
        """Return the facts that `as_json` wrote."""
        return cls(**{name: facts[name] for name in cls.__dataclass_fields__})


class BorrowedHead(nn.Module):
    """Backbone -> projector -> mean over the map -> classifier, with timm's interface.

    The backbone is a network without the layers after its final map, (C_S, H_S, W_S). A map that is
    larger than the teacher's is first averaged down to the teacher's size, by exact area. The
    projected map is (C_T, min(H_S, H_T), min(W_S, W_T)).

    The projector is SimKD's (Chen et al., "Knowledge Distillation with the Reused Teacher
    Classifier", 2022; official code): convolutions 1x1, 3x3, 1x1 with C_T / reduction inner
    channels, each with batch norm and ReLU.

    Args:
        backbone: The student's network after `take_apart`.
        layout: The layout of the backbone's `forward_features` output.
        shape: (C_S, H_S, W_S).
        facts: The shape of the head.
        classes: The number of classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layout: Layout,
        shape: tuple[int, int, int],
        facts: BorrowedHeadSpec,
        classes: int,
    ) -> None:
        super().__init__()
        self.facts = facts
        self.backbone = backbone
        self.layout = layout
        own_size = shape[1], shape[2]
        self.shrink = AreaResample(own_size, smaller(own_size, (facts.height, facts.width)))
        inner = max(1, facts.channels // facts.reduction)
        self.projector = nn.Sequential(
            *_conv_norm_relu(shape[0], inner, 1),
            *_conv_norm_relu(inner, inner, 3),
            *_conv_norm_relu(inner, facts.channels, 1),
        )
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(facts.channels, classes, bias=facts.bias).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the projected map."""
        return self._project(self.backbone.forward_features(images))  # type: ignore[operator]

    def forward_head(self, maps: Tensor) -> Tensor:
        """Return the logits (B, classes) of projected maps."""
        logits: Tensor = self.classifier(self.pooling(maps).flatten(1))
        return logits

    def get_classifier(self) -> nn.Linear:
        """Return the teacher's classifier."""
        return self.classifier

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The backbone's stages; the modules' paths are those in this network."""
        return [{**stage, "module": f"backbone.{stage['module']}"} for stage in feature_info(self.backbone)]

    @property
    def forward_intermediates(self) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """The function (images, **options) -> projected map, backbone's stages.

        The attribute is absent if the backbone does not have it.
        """
        inner = self.backbone.forward_intermediates

        def forward(images: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
            final, stages = inner(images, **options)  # type: ignore[operator]
            return self._project(final), stages

        return forward

    def _project(self, final: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.shrink(self.layout.to_map(final)))
        return projected


def borrow(
    student: nn.Module, teacher: nn.Module, *, reduction: int, image_sizes: tuple[int, int], channels: int
) -> BorrowedHead:
    """Build SimKD's student from a student's backbone and a copy of the teacher's classifier.

    The projector between them is new; torch's current generator draws its weights. The classifier is frozen.

    Args:
        student: The network whose backbone is used; it is changed in place.
        teacher: The network whose classifier is copied.
        reduction: Divisor of the projector's inner channels.
        image_sizes: The side of the student's and of the teacher's input, pixels.
        channels: Channels of the images.

    Raises:
        ModelError: The teacher's classifier is not a single linear layer on the mean of its map, or the
            student does not show its final map.
    """
    spec = Observer(teacher).spec(image_sizes[1], channels)
    classifier = classifier_of(teacher)
    if not spec.head_is_linear_on_pooled or classifier is None:
        raise ModelError(
            "the teacher's classifier cannot be borrowed",
            why="it is not a single linear layer on the mean of its final map",
            hint="choose another teacher (a ResNet, EfficientNet or Swin), or another method than simkd",
        )
    depth, height, width = spec.map
    facts = BorrowedHeadSpec(depth, height, width, reduction, classifier.bias is not None)
    head = assemble(student, facts, classes=spec.classes, image_size=image_sizes[0], channels=channels)
    with torch.no_grad():
        head.classifier.weight.copy_(classifier.weight.flatten(1))
        if classifier.bias is not None:
            head.classifier.bias.copy_(classifier.bias)
    return head


def assemble(
    student: nn.Module, facts: BorrowedHeadSpec, *, classes: int, image_size: int, channels: int
) -> BorrowedHead:
    """Build the network of `borrow` with random weights, from the facts in a model card.

    Raises:
        ModelError: The student does not show its final map.
    """
    layout, shape = take_apart(student, image_size=image_size, channels=channels)
    return BorrowedHead(student, layout, shape, facts, classes).train(student.training)


def take_apart(student: nn.Module, *, image_size: int, channels: int) -> tuple[Layout, tuple[int, int, int]]:
    """Remove the parts of a network that its final map does not depend on, in place.

    Args:
        student: The network.
        image_size: Side of its input, pixels.
        channels: Channels of the images.

    Returns:
        The layout of its `forward_features` output, and the map's (C, H, W).

    Raises:
        ModelError: The network does not show its final map.
    """
    if not hasattr(student, "forward_features"):
        raise _no_final_map(student, "it has no `forward_features`, unlike timm's architectures")
    observer = Observer(student)
    # Pixels differ, so that two layouts of the map never compare equal.
    image = torch.arange(channels * image_size**2).mul(0.7).sin().view(1, channels, image_size, image_size)
    with evaluation_mode(student), torch.enable_grad():
        shown = observer(image).map
        final = student.forward_features(image)  # type: ignore[operator]
        layout = layout_between(final, shown)
        if layout is None:
            raise _no_final_map(student, "its pooling does not read the output of its `forward_features`")
        _remove_unused_parts(student, layout.to_map(final))
    return layout, (shown.shape[1], shown.shape[2], shown.shape[3])


def _remove_unused_parts(network: nn.Module, final: Tensor) -> None:
    """Replace every part of the network that the map does not depend on by the identity."""
    learnable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(final.sum(), learnable, allow_unused=True)
    unused = {
        id(parameter) for parameter, gradient in zip(learnable, gradients, strict=True) if gradient is None
    }
    removed: list[str] = []
    for path, part in list(network.named_modules()):
        own = [id(parameter) for parameter in part.parameters()]
        inside_removed = any(path.startswith(f"{other}.") for other in removed)
        if path and own and not inside_removed and unused.issuperset(own):
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
            removed.append(path)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _no_final_map(student: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"no projector can follow the map of {type(student).__name__}",
        why=why,
        hint="choose another student, or another method than simkd",
    )
