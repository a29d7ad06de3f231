"""Settings of MSDCRD."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_grids, require_layers, require_positive_weight
from stages.methods.settings.base import MethodSettings


class MsdcrdSettings(MethodSettings):
    """Multi-scale decoupled contrastive distillation (arXiv 2502.05835), our reading."""

    method: ClassVar[str] = "stages.methods.msdcrd:Msdcrd"

    name: Literal["msdcrd"]
    layers: list[int] | Literal["last", "ends"] = setting(
        "last",
        "last: the map that feeds the pooling; ends: the stage ends of both networks, paired from the "
        "deepest; or stage numbers, 0 the first, -1 the deepest",
    )
    activation: Literal["after", "before"] = setting(
        "after",
        "read the maps after or before the activation that ends them; before: not with stage numbers",
    )
    grids: list[int] = setting(
        lambda: [1, 2, 4], "windows per axis at each scale, limited to the smaller map", min_length=1
    )
    window_stride: float = setting(
        1.0, "step between windows as a share of the window; below 1 they overlap", gt=0.0, le=1.0
    )
    pool: Literal["avg", "max", "gem"] = setting("avg", "how a window becomes one vector")
    projector: Literal["student_linear", "none", "both_128", "mlp"] = setting(
        "student_linear", "how the student's vectors are brought to the length of the teacher's"
    )
    tau_sample: float = setting(0.1, "temperature of the sample-wise loss", gt=0.0)
    tau_feature: float = setting(0.1, "temperature of the feature-wise loss", gt=0.0)
    learn_tau: bool = setting(False, "learn both temperatures, starting at these values")
    alpha: float = setting(1.0, "weight of the sample-wise loss", ge=0.0)
    beta: float = setting(1.0, "weight of the feature-wise loss", ge=0.0)
    lambda_kd: float = setting(0.0, "weight of an additional KD term", ge=0.0)
    kd_temperature: float = setting(4.0, "temperature of the KD term", gt=0.0)
    symmetric: bool = setting(False, "add the direction anchored at the teacher")
    exclude_same_class: bool = setting(False, "do not use images of the same class as negatives")
    feature_axis: Literal["region", "channel"] = setting(
        "region",
        "what the feature-wise loss contrasts: the windows of one image, or channels over the whole batch",
    )
    negatives: Literal["per_region", "joint"] = setting(
        "per_region", "per_region: one softmax per window; joint: one over all windows of all images"
    )
    scale_weights: Literal["uniform", "pyramid"] = setting(
        "uniform", "weights of the scales; pyramid: 1, 1/2, 1/4, … from the coarsest"
    )
    selection: Literal["none", "dedup", "sdd", "topk"] = setting(
        "dedup", "which windows count, and with what weight"
    )
    topk: int = setting(8, "windows per image with selection topk", unit="windows", ge=1)
    overlap_iou: float | None = setting(
        None,
        "windows that overlap at least this much are not used as negatives of each other",
        gt=0.0,
        le=1.0,
    )

    @model_validator(mode="after")
    def _check_grids_layers_and_weights(self) -> MsdcrdSettings:
        require_grids(self.grids)
        require_layers(self.layers, self.activation)
        require_positive_weight(alpha=self.alpha, beta=self.beta, lambda_kd=self.lambda_kd)
        return self
