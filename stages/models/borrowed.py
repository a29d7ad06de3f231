"""A student that answers with its teacher's classifier: backbone, projector, classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.anatomy import classifier_of, feature_info
from stages.models.layout import Layout, layout_between
from stages.models.observer import Observer
from stages.models.resampling import AreaResample, smaller
from stages.models.watching import evaluating


@dataclass(frozen=True)
class Borrowed:
    """What a card tells of it, beside the backbone's own facts.

    channels, height, width: of the teacher's final map. reduction: the projector's inner channels are
    `channels` divided by it. bias: whether the classifier has one.
    """

    channels: int
    height: int
    width: int
    reduction: int
    bias: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Borrowed:
        return cls(**{name: facts[name] for name in cls.__dataclass_fields__})


class BorrowedHead(nn.Module):
    """Backbone -> projector -> mean over the map -> classifier, with timm's parts of a network.

    The backbone is a network without what lies behind its final map, (C_S, H_S, W_S). Where that is
    larger than the teacher's it is pooled down to its size by exact area first, so that the
    projected map is (C_T, min(H_S, H_T), min(W_S, W_T)).

    The projector is SimKD's (Chen et al., "Knowledge Distillation with the Reused Teacher
    Classifier", 2022; official code): convolutions 1x1, 3x3, 1x1 with C_T / reduction inner
    channels, each with batch norm and ReLU.
    """

    def __init__(
        self, backbone: nn.Module, layout: Layout, shape: tuple[int, int, int], facts: Borrowed, classes: int
    ) -> None:
        super().__init__()
        self.facts = facts
        self.backbone = backbone
        self.layout = layout
        here = shape[1], shape[2]
        self.shrink = AreaResample(here, smaller(here, (facts.height, facts.width)))
        inner = max(1, facts.channels // facts.reduction)
        self.projector = nn.Sequential(
            *_step(shape[0], inner, 1), *_step(inner, inner, 3), *_step(inner, facts.channels, 1)
        )
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(facts.channels, classes, bias=facts.bias).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The projected map."""
        return self._projected(self.backbone.forward_features(images))  # type: ignore[operator]

    def forward_head(self, maps: Tensor) -> Tensor:
        return self.classifier(self.pooling(maps).flatten(1))

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The backbone's stages, the modules by their place in this network."""
        return [{**stage, "module": f"backbone.{stage['module']}"} for stage in feature_info(self.backbone)]

    @property
    def forward_intermediates(self) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """(images, **how) -> the projected map and the backbone's stages; absent where the backbone's is."""
        inner = self.backbone.forward_intermediates

        def shown(images: Tensor, **how: Any) -> tuple[Tensor, list[Tensor]]:
            final, stages = inner(images, **how)  # type: ignore[operator]
            return self._projected(final), stages

        return shown

    def _projected(self, final: Tensor) -> Tensor:
        return self.projector(self.shrink(self.layout.map_of(final)))


def borrow(
    student: nn.Module, teacher: nn.Module, *, reduction: int, image_sizes: tuple[int, int], channels: int
) -> BorrowedHead:
    """The student's backbone, a fresh projector, and a copy of the teacher's classifier, frozen.

    image_sizes: the student's, the teacher's. The student is taken apart; the projector's weights are
    drawn from torch's current generator. Raises ModelError if the teacher's classifier is not one
    linear layer on the mean of its map, or the student does not show its final map.
    """
    spec = Observer(teacher).spec(image_sizes[1], channels)
    classifier = classifier_of(teacher)
    if not spec.head_is_linear_on_pooled or classifier is None:
        raise ModelError(
            "the teacher's classifier cannot be borrowed",
            why="it is not one linear layer on the mean of its final map",
            hint="choose such a teacher (a ResNet, EfficientNet or Swin), or another method than simkd",
        )
    depth, height, width = spec.map
    facts = Borrowed(depth, height, width, reduction, classifier.bias is not None)
    made = assemble(student, facts, classes=spec.classes, image_size=image_sizes[0], channels=channels)
    with torch.no_grad():
        made.classifier.weight.copy_(classifier.weight.flatten(1))
        if classifier.bias is not None:
            made.classifier.bias.copy_(classifier.bias)
    return made


def assemble(
    student: nn.Module, facts: Borrowed, *, classes: int, image_size: int, channels: int
) -> BorrowedHead:
    """As `borrow`, with random weights in the classifier: what a card tells how to build.

    Raises ModelError if the student does not show its final map.
    """
    layout, shape = take_apart(student, image_size=image_size, channels=channels)
    return BorrowedHead(student, layout, shape, facts, classes).train(student.training)


def take_apart(student: nn.Module, *, image_size: int, channels: int) -> tuple[Layout, tuple[int, int, int]]:
    """Leaves of the network what its final map depends on, in place; returns how its `forward_features`
    gives that map, and the map's (C, H, W).

    Raises ModelError if the network does not show its final map.
    """
    if not hasattr(student, "forward_features"):
        raise _shows_no_map(student, "it has no `forward_features`, as timm's architectures have")
    observer = Observer(student)
    # Not all equal, so that no two layouts of the map look the same.
    image = torch.arange(channels * image_size**2).mul(0.7).sin().view(1, channels, image_size, image_size)
    with evaluating(student), torch.enable_grad():
        shown = observer(image).map
        final = student.forward_features(image)  # type: ignore[operator]
        layout = layout_between(final, shown)
        if layout is None:
            raise _shows_no_map(student, "its pooling reads something else than it shows")
        _cut_off(student, layout.map_of(final))
    return layout, (shown.shape[1], shown.shape[2], shown.shape[3])


def _cut_off(network: nn.Module, final: Tensor) -> None:
    """Replaces by the identity every part of the network that the map does not depend on."""
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(final.sum(), learnt, allow_unused=True)
    unread = {id(parameter) for parameter, found in zip(learnt, gradients, strict=True) if found is None}
    gone: list[str] = []
    for path, part in list(network.named_modules()):
        held = [id(parameter) for parameter in part.parameters()]
        inside_gone = any(path.startswith(f"{other}.") for other in gone)
        if path and held and not inside_gone and unread.issuperset(held):
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
            gone.append(path)


def _step(before: int, after: int, kernel: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def _shows_no_map(student: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"no projector can be put behind the map of {type(student).__name__}",
        why=why,
        hint="choose another student, or another method than simkd",
    )
