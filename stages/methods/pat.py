"""PAT: perspective-aware teaching, first named FOFA (ICCV 2025, arXiv 2501.08885).

A region-aware attention mixes the maps at the student's stage ends and brings them to the teacher's
shapes. The teacher runs a second time with prompts between its stages, which learn to make its maps
teachable. With p_S, p_T, p_P the softmax of student, teacher and prompted teacher, A_n the student's
n-th aligned map and P_n the prompted teacher's:

    L = lambda_kd T^2 KL(p_T || p_S) + lambda_features sum_n HCL(A_n, P_n) + lambda_prompt T^2 KL(p_T || p_P)

HCL is `pyramid_loss`. P_n is the map before the prompt that follows it, like in the official code.

Our reading, where we deviate from that code: the prompt before stage n gets the gap A_n - T_n as
feedback. In the code that is the gap of the previous step: of other images, lost at a resume, and of the
wrong shape for a smaller batch. Ours is the gap of this batch, with T_n from the teacher's own first
pass; it carries no gradient, like there. Alternatives: no feedback (it adds 0.46 points in the paper's
ablation), or a running mean over images. The code also prompts the first stage; the map before it is
not available here, so the prompts are at the teacher's stage ends except the last.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_square_queries,
)
from stages.methods.parts.prompts import Prompt
from stages.methods.parts.pyramid import pyramid_loss
from stages.methods.parts.region_attention import RegionAttention
from stages.methods.parts.stage_pairs import paired_stage_ends
from stages.methods.settings.pat import MAX_STAGE_ENDS
from stages.models.features import Change, Features, FeatureSpec, Needs


class Pat(Method):
    """Match the maps of a prompted teacher, and the logits of the teacher.

    The loss is given in the module's equation. Attention and prompts run in the precision of the step, the
    losses in float32. Learns attention and prompts.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        queries: Tokens in the attention, a quarter for each of four stage ends: four times a square.
        width: Channels of a token.
        heads: Attention heads; a divisor of `width`.
        lambda_kd: Weight of the KD term with the teacher without prompts.
        lambda_features: Weight of the distance to the prompted teacher's maps.
        lambda_prompt: Weight of the KD term between the teacher with and without prompts.
        temperature: Divisor of the logits in both KD terms, which are multiplied by its square.

    Raises:
        ModelError: A network has fewer than two stage ends.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.pat import Pat
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Pat.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Pat.needs()).eval()
        >>> method = Pat(student.spec(64, 3), teacher.spec(64, 3), queries=16, width=32, heads=4)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "pat"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        queries: int = 64,
        width: int = 512,
        heads: int = 8,
        lambda_kd: float = 1.0,
        lambda_features: float = 1.0,
        lambda_prompt: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        require_square_queries(queries, width, heads, stage_ends=MAX_STAGE_ENDS)
        require_at_least(0.0, lambda_kd=lambda_kd, lambda_prompt=lambda_prompt)
        require_above(0.0, lambda_features=lambda_features, temperature=temperature)
        self.lambda_kd, self.lambda_features, self.lambda_prompt = lambda_kd, lambda_features, lambda_prompt
        self.temperature = temperature
        pairs = paired_stage_ends("pat", student, teacher, at_least=2)
        student_shapes, teacher_shapes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        grid = math.isqrt(queries // MAX_STAGE_ENDS)
        self.attention = RegionAttention(student_shapes, teacher_shapes, grid, width, heads)
        self.unpaired = len(teacher.ends) - len(pairs)
        prompted = teacher.ends[self._first_prompt : -1]
        feedback = teacher_shapes[len(teacher_shapes) - len(prompted) :]
        self.prompts = nn.ModuleList(Prompt(*shapes) for shapes in zip(prompted, feedback, strict=True))

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends and a second run of the teacher; see `Method.needs`."""
        return Needs(ends=True, teacher_again=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        student_ends = student.ends[len(student.ends) - len(self.attention.embeddings) :]
        aligned = self.attention(list(student_ends))
        gaps = [
            student_map.detach() - teacher_map
            for student_map, teacher_map in zip(aligned, teacher.ends[self.unpaired :], strict=True)
        ]
        prompted_logits, prompted_maps = self._run_prompted_teacher(gaps, batch)
        distances = torch.stack(
            [
                pyramid_loss(student_map, prompted_map)
                for student_map, prompted_map in zip(aligned, prompted_maps, strict=True)
            ]
        )
        loss = self.lambda_features * distances.sum()
        if self.lambda_kd > 0.0:
            loss = loss + self.lambda_kd * kd_loss(student.logits, teacher.logits, self.temperature)
        if self.lambda_prompt > 0.0:
            loss = loss + self.lambda_prompt * kd_loss(prompted_logits, teacher.logits, self.temperature)
        return loss

    @property
    def _first_prompt(self) -> int:
        """The teacher's stage end with the first prompt: the one before the first paired end."""
        return max(self.unpaired - 1, 0)

    def _run_prompted_teacher(self, gaps: list[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Compute the prompted teacher's logits and its maps at the paired ends, before their prompts."""
        maps_before_prompts: dict[int, Tensor] = {}

        def prompt_at(end: int, prompt: nn.Module, gap: Tensor) -> Change:
            def add_prompt(maps: Tensor) -> Tensor:
                maps_before_prompts[end] = maps
                prompted: Tensor = prompt(maps, gap)
                return prompted

            return add_prompt

        feedback = gaps[len(gaps) - len(self.prompts) :]
        changes = {
            end: prompt_at(end, prompt, gap)
            for end, (prompt, gap) in enumerate(
                zip(self.prompts, feedback, strict=True), start=self._first_prompt
            )
        }
        features = batch.teacher.rerun_with_changed_maps(changes)
        maps = [maps_before_prompts.get(end, final) for end, final in enumerate(features.ends)]
        return features.logits, maps[self.unpaired :]
