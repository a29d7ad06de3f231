"""FitNet: hints for the student's inner maps.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3, in the form of the code of
CRD (Tian et al., 2020): regressor and student are trained together, in one stage, where the paper trains
the regressor and the student's lower half first. With F_S, F_T the maps at a stage end, r the regressor:

    L = sum over hints of mean( (r(F_S) - F_T)^2 )          mean over images, channels and pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_one_of, require_stage_ends
from stages.methods.parts.regressors import convolutional_regressor, linear_regressor
from stages.methods.parts.stage_pairs import paired_stage_ends
from stages.models.features import Features, FeatureSpec, Needs

Regressor = Literal["conv", "linear"]


class Fitnet(Method):
    """Match the teacher's maps at stage ends, through a regressor for each.

    The loss is given in the module's equation. Learns the regressors.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        hints: Stage ends counted from the deepest (-1, -2, ...), or "all".
        regressor: "conv": convolution, batch norm and ReLU; "linear": a 1x1 convolution.

    Raises:
        ModelError: A network has no stage end of a number in `hints`.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.fitnet import Fitnet
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Fitnet.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Fitnet.needs()).eval()
        >>> method = Fitnet(student.spec(64, 3), teacher.spec(64, 3), hints=(-1, -2))
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "fitnet"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        hints: Sequence[int] | Literal["all"] = (-2,),
        regressor: Regressor = "conv",
    ) -> None:
        super().__init__(student, teacher)
        require_one_of(get_args(Regressor), regressor=regressor)
        if isinstance(hints, str):
            require_one_of(("all",), hints=hints)
            pairs = paired_stage_ends(self.name, student, teacher)
            self.hints = list(range(-len(pairs), 0))
        else:
            require_stage_ends("hints", hints)
            pairs = paired_stage_ends(self.name, student, teacher, at_least=-min(hints))
            self.hints = sorted(hints)
        build = convolutional_regressor if regressor == "conv" else linear_regressor
        layers = [build(*pairs[hint]) for hint in self.hints]
        self.regressors = nn.ModuleList(layer for layer, _ in layers)
        self.targets = nn.ModuleList(resample_teacher for _, resample_teacher in layers)

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends; see `Method.needs`."""
        return Needs(ends=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        loss = student.logits.new_zeros((), dtype=torch.float32)
        with torch.autocast(student.logits.device.type, enabled=False):
            for hint, regressor, resample_teacher in zip(
                self.hints, self.regressors, self.targets, strict=True
            ):
                target = resample_teacher(teacher.ends[hint].detach().float())
                loss = loss + (regressor(student.ends[hint].float()) - target).square().mean()
        return loss
