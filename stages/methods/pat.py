"""PAT: perspective-aware teaching, first named FOFA (ICCV 2025, arXiv 2501.08885).

The student's stage ends, mixed by a region-aware attention, are brought to the teacher's shapes;
the teacher is run a second time with prompts between its stages, which learn to make its maps
teachable. With p_S, p_T, p_P the softmax of student, teacher and prompted teacher, A_n the
student's n-th aligned map and P_n the prompted teacher's:

    L = lambda_kd T^2 KL(p_T || p_S) + lambda_features sum_n HCL(A_n, P_n) + lambda_prompt T^2 KL(p_T || p_P)

HCL is `pyramid_loss`. P_n is taken before the prompt that follows it, as in the official code.

Our reading, where we leave that code: the prompt before stage n is told of the gap A_n - T_n, which
in the code is that of the previous step, so of other images, lost at a resume and wrong in shape
for a smaller batch. Ours is that of this batch, T_n from the teacher's own first pass; it carries
no gradient, as there. Alternatives: no feedback at all (worth 0.46 points in the paper's ablation),
or a running mean over images. The code prompts the first stage too; the map before it is not shown
here, so the prompts stand at the teacher's stage ends but the last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.ends import paired
from stages.methods.parts.prompts import Prompt
from stages.methods.parts.pyramid import pyramid_loss
from stages.methods.parts.region_attention import RegionAttention
from stages.methods.settings import MethodSettings, PatSettings
from stages.models.features import Change, Features, FeatureSpec, Needs


class Pat(Method):
    """The loss of the module's equation. Attention and prompts run in the step's precision, the losses in
    float32. Learns both."""

    name = "pat"

    def __init__(self, settings: PatSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError for a network of fewer than two stage ends."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        pairs = paired("pat", student, teacher, at_least=2)
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.attention = RegionAttention(ours, theirs, settings.grid, settings.width, settings.heads)
        self.unpaired = len(teacher.ends) - len(pairs)
        before = teacher.ends[max(self.unpaired - 1, 0) : -1]
        fed_back = theirs[len(theirs) - len(before) :]
        self.prompts = nn.ModuleList(Prompt(*shapes) for shapes in zip(before, fed_back, strict=True))

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True, teacher_again=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        settings = self.settings
        aligned = self.attention(list(student.ends[len(student.ends) - len(self.attention.embeddings) :]))
        gaps = [
            ours.detach() - theirs
            for ours, theirs in zip(aligned, teacher.ends[self.unpaired :], strict=True)
        ]
        logits, prompted = self._prompted(gaps, batch)
        loss = (
            settings.lambda_features
            * torch.stack(
                [pyramid_loss(ours, theirs) for ours, theirs in zip(aligned, prompted, strict=True)]
            ).sum()
        )
        if settings.lambda_kd > 0.0:
            loss = loss + settings.lambda_kd * kd_loss(student.logits, teacher.logits, settings.temperature)
        if settings.lambda_prompt > 0.0:
            loss = loss + settings.lambda_prompt * kd_loss(logits, teacher.logits, settings.temperature)
        return loss

    def _prompted(self, gaps: list[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The prompted teacher's logits, and its maps at the paired ends as they are before the prompt
        that follows."""
        before: dict[int, Tensor] = {}
        first = max(self.unpaired - 1, 0)

        def change(number: int, prompt: nn.Module, gap: Tensor) -> Change:
            def changed(maps: Tensor) -> Tensor:
                before[number] = maps
                added: Tensor = prompt(maps, gap)
                return added

            return changed

        told = gaps[len(gaps) - len(self.prompts) :]
        shown = batch.teacher.again(
            {
                first + n: change(first + n, prompt, gap)
                for n, (prompt, gap) in enumerate(zip(self.prompts, told, strict=True))
            }
        )
        maps = [before.get(number, end) for number, end in enumerate(shown.ends)]
        return shown.logits, maps[self.unpaired :]
