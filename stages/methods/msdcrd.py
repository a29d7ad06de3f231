"""MSDCRD: multi-scale decoupled contrastive relational distillation, in our reading of its abstract.

C. Wang and H. Wang, arXiv 2502.05835. Public to us are its abstracts (v1 to v3): the feature map is
decoupled by multi-scale sliding-window pooling into local features; a sample-wise and a
feature-wise contrastive loss tell, within one batch and without a memory bank, which local feature
of the teacher one of the student belongs to. Its equations, scales, temperatures and selection rule
are not public to us: what follows is our reading, and each doubtful point is a setting.

For each layer, with F_S (B, C_S, H_S, W_S) of the student and F_T (B, C_T, H_T, W_T) of the teacher,
without gradient:

    Z[i,m]   = pool of F over window m               one window set for both networks, relative coordinates
    U, V     = norm(h_S(Z_S)), norm(h_T(Z_T))        (B, M, D), unit length, float32
    A[m,i,j] = <U[i,m], V[j,m]> / tau_sample         same window, across images
    G[i,m,n] = <U[i,m], V[i,n]> / tau_feature        same image, across windows
    L_SW     = - sum_{m,i} w[i,m] log softmax_j(A[m,i,:])[i] / sum w
    L_FW     = - sum_{i,m} w[i,m] log softmax_n(G[i,m,:])[m] / sum w
    L        = sum over layers of (alpha L_SW + beta L_FW) + lambda_kd L_KD

The default h_S is one linear layer C_S -> C_T and h_T the identity. Readings on offer, by setting:
`layers` (v1 speaks of each layer), `activation`, `selection` (the abstract's "sample categorisation" or
"selection"), `feature_axis` (windows, or channels as in contrastive clustering), `negatives`,
`symmetric`, `exclude_same_class` (as CRD does), `pool`, `projector`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.contrast_layer import ContrastLayer
from stages.methods.parts.ends import paired
from stages.methods.parts.places import Place
from stages.methods.settings import MethodSettings, MsdcrdSettings
from stages.models.features import Features, FeatureSpec, Needs

TAU_RANGE = (0.01, 1.0)
"""Where learned temperatures stay; widened to hold the starting values."""


class Msdcrd(Method):
    """The loss of the module's equations. Learns its projectors and, if asked, its temperatures."""

    name = "msdcrd"

    def __init__(self, settings: MsdcrdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError: a network shows no map; `projector: none` with unequal channels;
        a selection that needs a teacher whose head is linear on the pooled map."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        if settings.selection in ("sdd", "topk") and not teacher.head_is_linear_on_pooled:
            raise ModelError(
                f"`selection: {settings.selection}` cannot judge windows with this teacher",
                why="its classifier is not one linear layer on the mean of its final map",
                hint="set `selection: dedup` for msdcrd, or choose such a teacher (a ResNet)",
            )
        contrasts = settings.alpha > 0.0 or settings.beta > 0.0
        places = _places(settings, student, teacher) if contrasts else []
        self.layers = nn.ModuleList(ContrastLayer(settings, place, student, teacher) for place in places)
        learned = {"sample": settings.tau_sample} if settings.alpha > 0.0 else {}
        if settings.beta > 0.0:
            learned["feature"] = settings.tau_feature
        starts = learned.values() if settings.learn_tau else ()
        self.log_tau = nn.ParameterDict(
            {key: nn.Parameter(torch.tensor(math.log(tau))) for key, tau in learned.items()}
            if settings.learn_tau
            else {}
        )
        self._tau_range = (min((TAU_RANGE[0], *starts)), max((TAU_RANGE[1], *starts)))

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        assert isinstance(settings, MsdcrdSettings)
        return Needs(
            stages=tuple(settings.layers) if isinstance(settings.layers, list) else (),
            ends=settings.layers == "ends",
            before_activation=settings.activation == "before",
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes the negatives are those of the whole batch, each
        process gives the loss of its own images, and every process must hold equally many."""
        settings = self.settings
        with torch.autocast(student.logits.device.type, enabled=False):
            tau_sample = self._temperature("sample", settings.tau_sample)
            tau_feature = self._temperature("feature", settings.tau_feature)
            loss = student.logits.new_zeros((), dtype=torch.float32)
            for layer in self.layers:
                loss = loss + layer(student, teacher, batch, tau_sample, tau_feature)
            if settings.lambda_kd > 0.0:
                kd = kd_loss(student.logits, teacher.logits, settings.kd_temperature)
                loss = loss + settings.lambda_kd * kd
        return loss

    def _temperature(self, which: str, fixed: float) -> Tensor | float:
        if which not in self.log_tau:
            return fixed
        # Clamped before its use, not in the graph: a clamp in the graph has no gradient at the bound.
        low, high = self._tau_range
        with torch.no_grad():
            self.log_tau[which].clamp_(math.log(low), math.log(high))
        return self.log_tau[which].exp()


def _places(settings: MsdcrdSettings, student: FeatureSpec, teacher: FeatureSpec) -> list[Place]:
    """Where the maps are taken, the same in both networks."""
    before = settings.activation == "before"
    if isinstance(settings.layers, list):
        return [Place(stage=number) for number in settings.layers]
    if settings.layers == "last":
        return [Place(before=before)]
    count = len(paired("msdcrd", student, teacher))
    return [Place(end=number, before=before) for number in range(-count, 0)]
