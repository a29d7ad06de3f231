"""The interface of a distillation method.

A third party adds one by an entry point (docs/methods.md); the built-in ones are written against the
same interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from stages.methods.settings import MethodSettings
from stages.models.features import Features, FeatureSpec

TeacherHead = Callable[[Tensor], Tensor]
"""The teacher's classifier on pooled vectors: (B, M, C) -> (B, M, K); `Observer.local_logits`."""


class Method(nn.Module, ABC):
    """A distillation loss. What it learns (projectors, temperatures) are its parameters.

    Its parameters are trained with the student's, in one optimiser, and are never exported.
    """

    name: ClassVar[str]

    def __init__(self, settings: MethodSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if the two networks do not show what the method needs."""
        super().__init__()
        self.stages = self.needs(settings)

    @classmethod
    def needs(cls, settings: MethodSettings) -> tuple[int, ...]:
        """Numbers of the stages whose maps the method reads, of student and teacher alike.

        The map that feeds the pooling is always there. A method finds its stages by number
        (`Features.layer`, `FeatureSpec.shape_of`): other methods may ask for others beside them.
        """
        return ()

    @abstractmethod
    def forward(
        self,
        student: Features,
        teacher: Features,
        labels: Tensor,
        *,
        teacher_head: TeacherHead | None = None,
    ) -> Tensor:
        """The loss of one step: a float32 scalar, before the profile's `weight`.

        student, teacher: features of the same B images; the teacher's carry no gradient (they may be
        inference tensors). labels: (B,) int64.
        """
