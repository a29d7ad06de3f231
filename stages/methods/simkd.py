"""SimKD: the student answers with the teacher's own classifier.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022), section 3. With F_T
the map that feeds the teacher's pooling, P(F_S) the student's behind a projector:

    L = mean( (P(F_S) - F_T)^2 )          mean over images, channels and pixels

Where the sizes differ, the larger map is pooled down to the smaller, here by exact area. The
projector is part of the network that is deployed (`stages.models.borrowed`), and so is the
teacher's classifier, which stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.settings import MethodSettings, SimkdSettings
from stages.models.borrowed import BorrowedHead, borrow, take_apart
from stages.models.features import Features, FeatureSpec
from stages.models.resampling import AreaResample


class Simkd(Method):
    """The loss of the module's equation, for a student that was built with a projector."""

    name = "simkd"

    def __init__(self, settings: SimkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if the student's map was not brought to the teacher's channels and size."""
        super().__init__(settings, student, teacher)
        (ours, *here), (theirs, *there) = student.shape_of(None, "student"), teacher.shape_of(None, "teacher")
        if ours != theirs or here[0] > there[0] or here[1] > there[1]:
            raise ModelError(
                "simkd finds no projector behind the student's map",
                why=f"the student's map is {student.map}, the teacher's {teacher.map}",
                hint="build the student with `Simkd.build_student` first, as the distill stage does",
            )
        self.target = AreaResample(teacher.map[1:], student.map[1:])

    @classmethod
    def build_student(
        cls,
        settings: MethodSettings,
        student: nn.Module,
        teacher: nn.Module,
        *,
        image_sizes: tuple[int, int],
        channels: int,
    ) -> BorrowedHead:
        assert isinstance(settings, SimkdSettings)
        if isinstance(student, BorrowedHead):
            raise ModelError(
                "the student has the teacher's classifier already",
                why="two methods of the profile build the student anew",
                hint="keep one of them, such as simkd, in distill.methods",
            )
        return borrow(
            student, teacher, reduction=settings.reduction, image_sizes=image_sizes, channels=channels
        )

    @classmethod
    def check_student(
        cls, settings: MethodSettings, student: nn.Module, *, image_size: int, channels: int
    ) -> None:
        take_apart(student, image_size=image_size, channels=channels)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            return (student.map.float() - self.target(teacher.map.detach().float())).square().mean()
