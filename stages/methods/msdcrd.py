"""MSDCRD: multi-scale decoupled contrastive relational distillation, in our reading of its abstracts.

Source: C. Wang and H. Wang, arXiv 2502.05835. Only its abstracts (v1 to v3) are available to us: the
feature map is decoupled by multi-scale sliding-window pooling into local features; a sample-wise and a
feature-wise contrastive loss, within one batch and without a memory bank, match each local feature of
the student with that of the teacher. The equations, scales, temperatures and the selection rule are not
available to us: what follows is our reading, and each doubtful point is an argument.

For each layer, with F_S (B, C_S, H_S, W_S) of the student and F_T (B, C_T, H_T, W_T) of the teacher,
without gradient:

    Z[i,m]   = pool of F over window m               one window set for both networks, relative coordinates
    U, V     = norm(h_S(Z_S)), norm(h_T(Z_T))        (B, M, D), unit length, float32
    A[m,i,j] = <U[i,m], V[j,m]> / tau_sample         same window, across images
    G[i,m,n] = <U[i,m], V[i,n]> / tau_feature        same image, across windows
    L_SW     = - sum_{m,i} w[i,m] log softmax_j(A[m,i,:])[i] / sum w
    L_FW     = - sum_{i,m} w[i,m] log softmax_n(G[i,m,:])[m] / sum w
    L        = sum over layers of (alpha L_SW + beta L_FW) + lambda_kd L_KD

By default h_S is one linear layer C_S -> C_T and h_T the identity. Arguments that select another reading:
`layers` (v1 mentions each layer), `activation`, `selection` (the abstract's "sample categorisation" or
"selection"), `feature_axis` (windows, or channels like in contrastive clustering), `negatives`,
`symmetric`, `exclude_same_class` (like CRD), `pool`, `projector`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_at_most,
    require_grids,
    require_layers,
    require_one_of,
    require_positive_weight,
)
from stages.methods.parts.contrast_layer import (
    ContrastLayer,
    FeatureAxis,
    Negatives,
    Projector,
    ScaleWeights,
    Selection,
)
from stages.methods.parts.map_locations import MapLocation
from stages.methods.parts.stage_pairs import paired_stage_ends
from stages.methods.parts.windows import Pool
from stages.models.features import Features, FeatureSpec, Needs

Layers = Sequence[int] | Literal["last", "ends"]
Activation = Literal["after", "before"]

TAU_RANGE = (0.01, 1.0)
"""The range of learned temperatures; it is extended to contain the initial values."""


class Msdcrd(Method):
    """Contrast local features of student and teacher across images and across windows.

    The loss is given in the module's equations. Learns its projectors and, with `learn_tau`, its
    temperatures.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        layers: "last": the map that feeds the pooling. "ends": the stage ends of both networks, paired
            from the deepest. A sequence: stages by number, 0 the first, -1 the deepest.
        activation: Whether maps are read after or before the activation that ends them.
        grids: Windows per axis at each scale, limited to the smaller map.
        window_stride: Step between windows as a share of the window, above 0 and at most 1.
        pool: How a window becomes one vector.
        projector: How the student's vectors are brought to the length of the teacher's.
        tau_sample: Temperature of the sample-wise loss.
        tau_feature: Temperature of the feature-wise loss.
        learn_tau: Whether both temperatures are learned from these initial values.
        alpha: Weight of the sample-wise loss.
        beta: Weight of the feature-wise loss.
        lambda_kd: Weight of an additional KD term.
        kd_temperature: Temperature of the KD term.
        symmetric: Whether the direction anchored at the teacher is added.
        exclude_same_class: Whether images of the anchor's class are excluded from the negatives.
        feature_axis: What the feature-wise loss contrasts: windows ("region") or channels.
        negatives: "per_region": a softmax per window; "joint": one over all windows of all images.
        scale_weights: "uniform", or "pyramid": 1, 1/2, 1/4, ... from the coarsest scale.
        selection: Which windows count, and how much.
        topk: Windows per image of the selection "topk".
        overlap_iou: Windows that overlap at least this much are not negatives of each other.

    Raises:
        ModelError: A network has no such map; `projector` is "none" and the channels differ; the
            selection needs a teacher whose classifier is linear on the mean of its map.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.msdcrd import Msdcrd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Msdcrd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Msdcrd.needs()).eval()
        >>> method = Msdcrd(student.spec(64, 3), teacher.spec(64, 3), tau_sample=0.07)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "msdcrd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        layers: Layers = "last",
        activation: Activation = "after",
        grids: Sequence[int] = (1, 2, 4),
        window_stride: float = 1.0,
        pool: Pool = "avg",
        projector: Projector = "student_linear",
        tau_sample: float = 0.1,
        tau_feature: float = 0.1,
        learn_tau: bool = False,
        alpha: float = 1.0,
        beta: float = 1.0,
        lambda_kd: float = 0.0,
        kd_temperature: float = 4.0,
        symmetric: bool = False,
        exclude_same_class: bool = False,
        feature_axis: FeatureAxis = "region",
        negatives: Negatives = "per_region",
        scale_weights: ScaleWeights = "uniform",
        selection: Selection = "dedup",
        topk: int = 8,
        overlap_iou: float | None = None,
    ) -> None:
        super().__init__(student, teacher)
        require_layers(layers, activation)
        require_grids(grids)
        require_above(0.0, window_stride=window_stride, tau_sample=tau_sample, tau_feature=tau_feature)
        require_above(0.0, kd_temperature=kd_temperature)
        require_at_most(1.0, window_stride=window_stride)
        require_at_least(0.0, alpha=alpha, beta=beta, lambda_kd=lambda_kd)
        require_positive_weight(alpha=alpha, beta=beta, lambda_kd=lambda_kd)
        require_at_least(1, topk=topk)
        require_one_of(get_args(Pool), pool=pool)
        require_one_of(get_args(Projector), projector=projector)
        require_one_of(get_args(FeatureAxis), feature_axis=feature_axis)
        require_one_of(get_args(Negatives), negatives=negatives)
        require_one_of(get_args(ScaleWeights), scale_weights=scale_weights)
        require_one_of(get_args(Selection), selection=selection)
        if overlap_iou is not None:
            require_above(0.0, overlap_iou=overlap_iou)
            require_at_most(1.0, overlap_iou=overlap_iou)
        if selection in ("sdd", "topk") and not teacher.head_is_linear_on_pooled:
            raise ModelError(
                f"`selection: {selection}` cannot judge windows with this teacher",
                why="its classifier is not one linear layer on the mean of its final map",
                hint="set `selection: dedup` for msdcrd, or choose such a teacher (a ResNet)",
            )
        self.tau_sample, self.tau_feature = tau_sample, tau_feature
        self.lambda_kd, self.kd_temperature = lambda_kd, kd_temperature
        contrasts = alpha > 0.0 or beta > 0.0
        locations = _locations(layers, activation, student, teacher) if contrasts else []
        self.layers = nn.ModuleList(
            ContrastLayer(
                location,
                student,
                teacher,
                grids=grids,
                window_stride=window_stride,
                pool=pool,
                projector=projector,
                alpha=alpha,
                beta=beta,
                symmetric=symmetric,
                exclude_same_class=exclude_same_class,
                feature_axis=feature_axis,
                negatives=negatives,
                scale_weights=scale_weights,
                selection=selection,
                topk=topk,
                overlap_iou=overlap_iou,
            )
            for location in locations
        )
        learned: dict[str, float] = {}
        if learn_tau and alpha > 0.0:
            learned["sample"] = tau_sample
        if learn_tau and beta > 0.0:
            learned["feature"] = tau_feature
        self.log_tau = nn.ParameterDict(
            {key: nn.Parameter(torch.tensor(math.log(tau))) for key, tau in learned.items()}
        )
        self._tau_range = (min((TAU_RANGE[0], *learned.values())), max((TAU_RANGE[1], *learned.values())))

    @classmethod
    @override
    def needs(cls, *, layers: Layers = "last", activation: Activation = "after", **_arguments: Any) -> Needs:
        """List the maps of the requested layers.

        Args:
            layers: As in the constructor.
            activation: As in the constructor.
            **_arguments: The other arguments of the constructor.

        Returns:
            The maps to observe.
        """
        return Needs(
            stages=() if isinstance(layers, str) else tuple(layers),
            ends=layers == "ends",
            before_activation=activation == "before",
        )

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step.

        With several processes the negatives are those of the whole batch, each process returns the loss
        of its own images, and every process must hold the same number of images.

        Args:
            student: Features of B images.
            teacher: Features of the same images, without gradient.
            batch: Labels and classifiers of this step.

        Returns:
            A float32 scalar.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            tau_sample = self._temperature("sample", self.tau_sample)
            tau_feature = self._temperature("feature", self.tau_feature)
            loss = student.logits.new_zeros((), dtype=torch.float32)
            for layer in self.layers:
                loss = loss + layer(student, teacher, batch, tau_sample, tau_feature)
            if self.lambda_kd > 0.0:
                loss = loss + self.lambda_kd * kd_loss(student.logits, teacher.logits, self.kd_temperature)
        return loss

    def _temperature(self, key: str, fixed: float) -> Tensor | float:
        if key not in self.log_tau:
            return fixed
        # Clamped in place before its use: a clamp in the graph has no gradient at the bound.
        low, high = self._tau_range
        log_tau: Tensor = self.log_tau[key]
        with torch.no_grad():
            log_tau.clamp_(math.log(low), math.log(high))
        return log_tau.exp()


def _locations(
    layers: Layers, activation: Activation, student: FeatureSpec, teacher: FeatureSpec
) -> list[MapLocation]:
    """List where the maps are read, the same in both networks."""
    before = activation == "before"
    if not isinstance(layers, str):
        return [MapLocation(stage=number) for number in layers]
    if layers == "last":
        return [MapLocation(before=before)]
    count = len(paired_stage_ends("msdcrd", student, teacher))
    return [MapLocation(end=number, before=before) for number in range(-count, 0)]
