"""The interface of a distillation method.

Third parties add a method with an entry point (docs/reference/methods.md); the built-in methods use the same
interface. Read this file first, then `observed.py` (how networks are run), `registry.py` (how a profile's
settings become arguments) and any method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from stages.models.features import Change, Features, FeatureSpec, Needs


class Head(Protocol):
    """The classifier of a network."""

    def local_logits(self, vectors: Tensor) -> Tensor:
        """Apply the network's classifier to pooled vectors of parts of the image.

        Args:
            vectors: (B, M, C) of any float dtype. A gradient reaches them, and the student's classifier.

        Returns:
            (B, M, K) float32.

        Raises:
            ModelError: The classifier is not one linear layer on the mean of the final map
                (`FeatureSpec.head_is_linear_on_pooled`).
        """


class Teacher(Head, Protocol):
    """The teacher, beyond its features of this batch."""

    def rerun_with_changed_maps(self, changes: Mapping[int, Change]) -> Features:
        """Run the teacher again on the images of this step, with other maps at some stage ends.

        The weights stay frozen, but the gradient flows through the teacher to the inputs of the changes.
        Only methods whose `needs` set `teacher_again` may call this.

        Args:
            changes: By stage end, 0 the shallowest: a function from the map (B, C, H, W) that leaves the
                stage to its replacement of the same shape.

        Returns:
            The features of this run.
        """


@dataclass(frozen=True)
class Batch:
    """The data of one step, apart from the features of the two networks.

    Args:
        labels: (B,) int64, the true classes; with mixup and cutmix that of each image's larger part.
        indices: (B,) int64, each image's index in the training set, the same in every epoch.
        teacher: The teacher of this step.
        student: The student's classifier.
    """

    labels: Tensor
    indices: Tensor
    teacher: Teacher
    student: Head


class Method(nn.Module, ABC):
    """A distillation loss. Its parameters (projectors, temperatures) are trained with the student.

    They are in the same optimizer as the student's parameters and are never exported. The arguments of a
    method are plain keyword arguments of its constructor, with the names and the defaults of the fields
    of its settings class. `needs`, `build_student` and `check_student` get the same keyword arguments; an
    override names those that it reads and collects the others in `**_arguments`.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.

    Raises:
        ModelError: The networks do not provide what the method needs.
        ValueError: An argument is out of range.
    """

    name: ClassVar[str]

    def __init__(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.student_spec, self.teacher_spec = student, teacher

    @classmethod
    def needs(cls, **_arguments: Any) -> Needs:
        """List the maps that the method reads from student and teacher.

        The final map, the pooled vector and the logits are always available.

        Args:
            **_arguments: The arguments of the constructor.

        Returns:
            The maps to observe; by default none.
        """
        return Needs()

    @classmethod
    def build_student(
        cls,
        student: nn.Module,
        teacher: nn.Module,
        *,
        image_sizes: tuple[int, int],
        image_channels: int,
        **_arguments: Any,
    ) -> nn.Module:
        """Build the network that is trained and deployed instead of the student.

        Most methods do not override this: they train the student as it is. Random weights must come from
        torch's global generator, which has the training's seed.

        Args:
            student: The profile's student with its initial weights. Its modules may be reused.
            teacher: The trained teacher.
            image_sizes: The sides of the student's and of the teacher's images, in pixels.
            image_channels: Channels of the images.
            **_arguments: The arguments of the constructor.

        Returns:
            The student, or a `stages.models.borrowed.BorrowedHead` made of it. (A model card cannot
            describe any other network.)

        Raises:
            ModelError: The method cannot use this student or this teacher.
        """
        del teacher, image_sizes, image_channels
        return student

    @classmethod
    def check_student(
        cls, student: nn.Module, *, image_size: int, image_channels: int, **_arguments: Any
    ) -> None:
        """Check whether `build_student` can use a student, before anything runs and without a teacher.

        Args:
            student: The profile's student with random weights. Its modules may be changed.
            image_size: The side of the student's images, in pixels.
            image_channels: Channels of the images.
            **_arguments: The arguments of the constructor.

        Raises:
            ModelError: The method cannot use this student.
        """

    def prepare(self, labels: Tensor) -> None:
        """Prepare for a training set; called once, on the CPU, before the first step.

        Buffers that are registered here are saved and restored with the training.

        Args:
            labels: (N,) int64, the classes of all training images, in the order of `Batch.indices`.
        """

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step, before it is multiplied by its weight.

        Args:
            student: Features of B images.
            teacher: Features of the same images, without gradient.
            batch: Labels, indices and classifiers of this step.

        Returns:
            A float32 scalar.
        """
