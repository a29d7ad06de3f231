"""SimKD: the student reuses the teacher's classifier.

Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022), section 3. With F_T
the map that feeds the teacher's pooling, P(F_S) the student's map after a projector:

    L = mean( (P(F_S) - F_T)^2 )          mean over images, channels and pixels

Where the sizes differ, the larger map is pooled to the size of the smaller, here by exact area. The
deployed network contains the projector (`stages.models.borrowed`) and the teacher's classifier, which
does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_at_least
from stages.models.borrowed import BorrowedHead, borrow, take_apart
from stages.models.features import Features, FeatureSpec
from stages.models.resampling import AreaResample


class Simkd(Method):
    """Match the teacher's final map; the student must have been built by `build_student`.

    The loss is given in the module's equation. Learns nothing of its own: the projector is part of the
    student.

    Args:
        student: The shapes of the student with the projector.
        teacher: The teacher's shapes.
        reduction: The teacher's channels divided by the projector's inner channels; `build_student`
            uses it.

    Raises:
        ModelError: The student's map does not have the teacher's channels, or is larger.
        ValueError: `reduction` is below 1.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.simkd import Simkd
        >>> from stages.models.observer import Observer
        >>> network = timm.create_model("test_resnet")
        >>> built = Simkd.build_student(
        ...     timm.create_model("test_byobnet"), network, image_sizes=(64, 64), image_channels=3
        ... )
        >>> student, teacher = Observer(built), Observer(network).eval()
        >>> method = Simkd(student.spec(64, 3), teacher.spec(64, 3))
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "simkd"

    def __init__(self, student: FeatureSpec, teacher: FeatureSpec, *, reduction: int = 2) -> None:
        super().__init__(student, teacher)
        require_at_least(1, reduction=reduction)
        (student_channels, *student_size) = student.shape_of(None, "student")
        (teacher_channels, *teacher_size) = teacher.shape_of(None, "teacher")
        larger = student_size[0] > teacher_size[0] or student_size[1] > teacher_size[1]
        if student_channels != teacher_channels or larger:
            raise ModelError(
                "simkd needs a student with a projector behind its map",
                why=f"the student's map is {student.map}, the teacher's {teacher.map}",
                hint="build the student with `Simkd.build_student` first, like the distill stage",
            )
        self.target = AreaResample(teacher.map[1:], student.map[1:])

    @classmethod
    @override
    def build_student(
        cls,
        student: nn.Module,
        teacher: nn.Module,
        *,
        image_sizes: tuple[int, int],
        image_channels: int,
        reduction: int = 2,
        **_arguments: Any,
    ) -> BorrowedHead:
        """Build backbone, projector and the teacher's classifier from student and teacher.

        Args:
            student: A network with its initial weights; the result contains its backbone.
            teacher: The trained teacher; the result contains a copy of its classifier.
            image_sizes: The sides of the student's and of the teacher's images, in pixels.
            image_channels: Channels of the images.
            reduction: The teacher's channels divided by the projector's inner channels.
            **_arguments: Ignored.

        Returns:
            The network to train and deploy.

        Raises:
            ModelError: The student has the teacher's classifier already, the teacher's classifier is not
                one linear layer on the mean of its map, or the student's final map is not available.
            ValueError: `reduction` is below 1.
        """
        require_at_least(1, reduction=reduction)
        if isinstance(student, BorrowedHead):
            raise ModelError(
                "the student has the teacher's classifier already",
                why="two methods of the profile build a new student",
                hint="remove one of them, such as simkd, from distill.methods",
            )
        return borrow(student, teacher, reduction=reduction, image_sizes=image_sizes, channels=image_channels)

    @classmethod
    @override
    def check_student(
        cls, student: nn.Module, *, image_size: int, image_channels: int, **_arguments: Any
    ) -> None:
        """Check whether the student's backbone can be separated; see `Method.check_student`."""
        take_apart(student, image_size=image_size, channels=image_channels)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        with torch.autocast(student.logits.device.type, enabled=False):
            target: Tensor = self.target(teacher.map.detach().float())
            return (student.map.float() - target).square().mean()
