"""Settings of MSDCRD."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class MsdcrdSettings(MethodSettings):
    """Multi-scale decoupled contrastive distillation (arXiv 2502.05835), our reading."""

    method: ClassVar[str] = "stages.methods.msdcrd:Msdcrd"

    name: Literal["msdcrd"]
    layers: list[int] | Literal["last", "ends"] = setting(
        "last",
        "last: the map that feeds the pooling; ends: the stage ends of both networks, paired from the "
        "deepest; or stage numbers from the front, 0-based (-1: the deepest)",
    )
    activation: Literal["after", "before"] = setting(
        "after", "take the maps after or before the activation that ends them; before: not by stage numbers"
    )
    grids: list[int] = setting(
        lambda: [1, 2, 4], "windows per axis at each scale; cut to the smaller map", min_length=1
    )
    window_stride: float = setting(
        1.0, "step between windows as a share of the window; 0.5 overlaps", gt=0.0, le=1.0
    )
    pool: Literal["avg", "max", "gem"] = setting("avg", "how a window becomes one vector")
    projector: Literal["student_linear", "none", "both_128", "mlp"] = setting(
        "student_linear", "how the student's vectors meet the teacher's"
    )
    tau_sample: float = setting(0.1, "temperature of the sample-wise loss", gt=0.0)
    tau_feature: float = setting(0.1, "temperature of the feature-wise loss", gt=0.0)
    learn_tau: bool = setting(False, "learn both temperatures, starting from these")
    alpha: float = setting(1.0, "weight of the sample-wise loss", ge=0.0)
    beta: float = setting(1.0, "weight of the feature-wise loss", ge=0.0)
    lambda_kd: float = setting(0.0, "weight of a plain KD term beside it", ge=0.0)
    kd_temperature: float = setting(4.0, "temperature of that KD term", gt=0.0)
    symmetric: bool = setting(False, "add the direction anchored at the teacher")
    exclude_same_class: bool = setting(False, "images of the same class are no negatives")
    feature_axis: Literal["region", "channel"] = setting(
        "region",
        "what the feature-wise loss contrasts: the windows of one image, or channels over the whole batch",
    )
    negatives: Literal["per_region", "joint"] = setting(
        "per_region", "joint: all regions of all images in one softmax"
    )
    scale_weights: Literal["uniform", "pyramid"] = setting(
        "uniform", "pyramid: 1, 1/2, 1/4, … from the coarsest scale on"
    )
    selection: Literal["none", "dedup", "sdd", "topk"] = setting("dedup", "which windows count, and how much")
    topk: int = setting(8, "windows kept per image by selection topk", unit="windows", ge=1)
    overlap_iou: float | None = setting(
        None,
        "windows overlapping at least this much are no negatives of each other",
        gt=0.0,
        le=1.0,
    )

    @model_validator(mode="after")
    def _says_something(self) -> MsdcrdSettings:
        if min(self.grids) < 1:
            raise ValueError(f"grids must be at least 1, found {min(self.grids)}")
        if isinstance(self.layers, list):
            if not self.layers:
                raise ValueError("layers names no layer: write `last`, `ends`, or stage numbers")
            if len(set(self.layers)) < len(self.layers):
                raise ValueError("layers must not repeat a stage")
            if self.activation == "before":
                raise ValueError(
                    "activation: before goes with layers `last` or `ends`; "
                    "stages by number are shown after their activation alone"
                )
        if self.alpha == 0.0 and self.beta == 0.0 and self.lambda_kd == 0.0:
            raise ValueError("alpha, beta and lambda_kd are all 0: the method would do nothing")
        return self
