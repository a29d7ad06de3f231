"""The interface of a distillation method.

A third party adds one by an entry point (docs/reference/methods.md); the built-in ones are written against
the same interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from stages.methods.settings.base import MethodSettings
from stages.models.features import Change, Features, FeatureSpec, Needs


class Head(Protocol):
    """A network's classifier, beyond its features of this batch."""

    def local_logits(self, vectors: Tensor) -> Tensor:
        """Its classifier on pooled vectors: (B, M, C) -> (B, M, K) float32. The student's takes the
        gradient, as the vectors do. Raises ModelError if its head is not linear on the pooled map
        (`FeatureSpec.head_is_linear_on_pooled`)."""


class Teacher(Head, Protocol):
    """The teacher beyond its features of this batch."""

    def again(self, changes: Mapping[int, Change]) -> Features:
        """What it shows of the same images when the map that leaves stage end n is replaced by
        `changes[n](map)`, (B, C, H, W) -> the same shape. Its weights stay frozen, but the gradient goes
        through it to whatever the changes were computed from. Only for a method whose needs say
        `teacher_again`."""


@dataclass(frozen=True)
class Batch:
    """What one step is about, beside the two networks' features.

    labels: (B,) int64, the true classes; under mixup and cutmix that of each image's larger part.
    indices: (B,) int64, each image's place in the training set: the same image has the same place
    in every epoch.
    """

    labels: Tensor
    indices: Tensor
    teacher: Teacher
    student: Head


class Method(nn.Module, ABC):
    """A distillation loss. What it learns (projectors, temperatures) are its parameters.

    Its parameters are trained with the student's, in one optimiser, and are never exported.
    """

    name: ClassVar[str]

    def __init__(self, settings: MethodSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if the two networks do not show what the method needs."""
        super().__init__()

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        """Which maps the method reads of student and teacher, beside the one that feeds the pooling,
        the pooled vector and the logits, which are always there."""
        return Needs()

    @classmethod
    def build_student(
        cls,
        settings: MethodSettings,
        student: nn.Module,
        teacher: nn.Module,
        *,
        image_sizes: tuple[int, int],
        channels: int,
    ) -> nn.Module:
        """The network that is trained, and deployed, in the student's place; most leave it as it is.

        student: as the profile names it, with its starting weights; it may be taken apart. teacher: as
        trained. image_sizes: the student's, the teacher's. Returns the student, or a
        stages.models.borrowed.BorrowedHead made of it: no other network could be built again from its
        card. Random weights come from torch's generator, which has the training's seed. Raises
        ModelError for a student or teacher this cannot be made of.
        """
        return student

    @classmethod
    def check_student(
        cls, settings: MethodSettings, student: nn.Module, *, image_size: int, channels: int
    ) -> None:
        """Looks before anything runs, and before there is a teacher, at whether `build_student` can use
        such a student (its weights are random). Raises ModelError if not."""

    def prepare(self, labels: Tensor) -> None:
        """Called once, before the first step and on the CPU, with the labels of all training images,
        (N,) int64, in the order of `Batch.indices`. Buffers made here are saved and restored with
        the training."""

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The loss of one step: a float32 scalar, before the profile's `weight`.

        student, teacher: features of the same B images; the teacher's carry no gradient.
        """
