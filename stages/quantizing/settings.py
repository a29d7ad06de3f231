"""The section `quantize` of a profile: calibration, float layers, fine-tune under simulated quantization.

Light: imports only pydantic.
"""

from __future__ import annotations

from typing import Literal

from stages.fields import Settings, setting
from stages.training.settings import RecipeSettings

SECTION = "quantize.distill"
"""The fine-tune's section of a profile."""

LEARNING_RATE_SHARE = 0.1
"""Learning rate of the fine-tune, as a share of that of `distill`."""

CLIP_GRAD = 1.0
"""Largest norm of the gradient if the profile sets none: the first steps of a coarsely rounded
network are steep."""


class QuantizationAwareSettings(Settings):
    """A short fine-tune of the student under the rounding of its INT8 file.

    It has the teacher and the methods of `distill`; settings that are not set here are those of `distill`.
    """

    when: Literal["missed", "always", "never"] = setting(
        "missed", "missed: only for an INT8 file that loses more than quantize.budget_points; always; never"
    )
    epochs: int = setting(3, "passes over the training images", unit="epochs", ge=1)
    learning_rate: float | None = setting(
        None, "peak learning rate; null: a tenth of distill.learning_rate", gt=0.0
    )
    batch_size: int | None = setting(None, "images a step; null: distill.batch_size", unit="images", ge=1)
    fraction: float | None = setting(
        None,
        "share of the training images used, stratified by class; null: distill.fraction",
        gt=0.0,
        le=1.0,
    )
    learn_ranges: bool = setting(
        True, "learn the activations' ranges with the weights; false: keep the calibrated ranges"
    )


def fine_tune_recipe(own: QuantizationAwareSettings, distill: RecipeSettings) -> RecipeSettings:
    """Return the recipe of the fine-tune: that of `distill`, shorter, slower, without warm-up and average.

    decay_norms is off: weight decay would pull the logarithm of a learned range towards zero.
    """
    changes = {
        "epochs": own.epochs,
        "learning_rate": own.learning_rate or LEARNING_RATE_SHARE * distill.learning_rate,
        "batch_size": own.batch_size or distill.batch_size,
        "fraction": own.fraction or distill.fraction,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
        "decay_norms": False,
        "clip_grad": distill.clip_grad or CLIP_GRAD,
        "ema": None,
        "keep": "best",
    }
    return distill.model_copy(update=changes)


class QuantizeSettings(Settings):
    """How INT8 files are calibrated."""

    images: int = setting(
        256, "training images used for calibration, spread over the classes", unit="images", ge=8
    )
    method: Literal["auto", "minmax", "moving_average", "percentile", "entropy"] = setting(
        "auto", "how activation ranges are computed; auto: all methods are tried, and the best one is used"
    )
    percentile: float = setting(
        99.99, "share of the values inside the range, for method percentile", gt=50.0, le=100.0
    )
    per_channel: bool = setting(True, "one weight scale an output channel")
    exclude: list[str] = setting(list, "names of ONNX nodes left in float (shell wildcards)")
    holdout: int = setting(
        256,
        "further training images, not used for calibration, on which methods and float layers are chosen",
        unit="images",
        ge=8,
    )
    budget_points: float = setting(
        1.0,
        "top-1 that an INT8 file may lose against the float file on the validation images",
        unit="points",
        ge=0.0,
        le=100.0,
    )
    goal_agreement: float = setting(
        98.0,
        "share of the held-out images with the float file's class below which layers are left in float",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    sensitivity: Literal["missed", "always", "never"] = setting(
        "missed",
        "measure what each layer costs; missed: only for a file outside budget_points or goal_agreement",
    )
    sensitivity_images: int = setting(
        64, "held-out images that each layer is measured on", unit="images", ge=8
    )
    max_float_share: float = setting(
        0.3, "share of the multiply-accumulates that may be left in float for accuracy", ge=0.0, le=1.0
    )
    agreement: float = setting(
        50.0,
        "least share of the validation images with the float file's class; below it the stage fails",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    prove: bool = setting(True, "false: if a file fails its proof, report it and write the file")
    distill: QuantizationAwareSettings = setting(
        QuantizationAwareSettings, "a short fine-tune of the student under the rounding of its INT8 file"
    )
