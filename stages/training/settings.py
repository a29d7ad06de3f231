"""The sections `compute`, `train` and `distill` of a profile, and the augmentation. Light: only pydantic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from stages.fields import Settings, setting

Schedule = Literal["cosine", "multistep", "step", "constant"]
"""How the learning rate decreases: per step for cosine, per epoch for the others."""


class ComputeSettings(Settings):
    """Where and how the networks are computed."""

    device: str = setting(
        "auto",
        "auto (a GPU if there is one), cpu, cuda, or cuda:N",
        pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$",
    )
    devices: int = setting(1, "number of GPUs, each with its process", unit="devices", ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 mixed precision on a GPU that computes it natively, otherwise fp32"
    )
    threads: int | None = setting(
        None, "CPU threads; null: all cores this process may use", unit="threads", ge=1
    )
    channels_last: bool = setting(True, "keep images and weights in NHWC order in memory (faster for CNNs)")
    compile: bool = setting(False, "compile the training step with torch.compile")


class AugmentSettings(Settings):
    """One random view of each image, computed for a whole batch at once."""

    pad: int = setting(0, "random crop after padding by this much on each side", unit="pixels", ge=0, le=64)
    flip: bool = setting(False, "mirror left to right at random")
    rotate_deg: float = setting(
        0.0, "random rotation up to this angle either way", unit="degrees", ge=0.0, le=180.0
    )
    scale: float = setting(0.0, "random zoom up to this share in or out", ge=0.0, lt=1.0)
    translate: float = setting(0.0, "random shift up to this share of the side", ge=0.0, lt=1.0)
    crop: float = setting(
        0.0,
        "random resized crop: smallest share of the area kept; 0 switches it off",
        ge=0.0,
        le=1.0,
    )
    brightness: float = setting(0.0, "random brightness change up to this share", ge=0.0, lt=1.0)
    contrast: float = setting(0.0, "random contrast change up to this share", ge=0.0, lt=1.0)
    erase: float = setting(0.0, "probability that a random rectangle is blanked", ge=0.0, le=1.0)
    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0 switches it off", ge=0.0)
    cutmix: float = setting(0.0, "alpha of cutmix's Beta distribution; 0 switches it off", ge=0.0)


class RecipeSettings(Settings):
    """How a network is trained."""

    epochs: int = setting(
        20, "passes over the training images; 0 keeps the starting weights", unit="epochs", ge=0
    )
    batch_size: int = setting(64, "images a step, over all devices", unit="images", ge=1)
    fraction: float = setting(1.0, "share of the training images used, stratified by class", gt=0.0, le=1.0)
    optimizer: str = setting("adamw", "timm's name of the optimiser", min_length=1)
    learning_rate: float = setting(1e-3, "peak learning rate", gt=0.0)
    weight_decay: float = setting(0.05, "weight decay (biases and norms are exempt)", ge=0.0)
    decay_norms: bool = setting(False, "apply weight decay to biases and norms too, like the papers on CIFAR")
    momentum: float = setting(0.9, "momentum of the optimisers that have one", ge=0.0, lt=1.0)
    schedule: Schedule = setting(
        "cosine", "how the learning rate decreases (per step for cosine, per epoch for the others)"
    )
    warmup_epochs: float = setting(0.0, "linear warm-up of the learning rate", unit="epochs", ge=0.0)
    decay_epochs: list[int] = setting(
        list, "epochs after which multistep decays; for step the first entry is the interval"
    )
    decay_rate: float = setting(0.1, "factor at each decay", gt=0.0, le=1.0)
    min_learning_rate: float = setting(0.0, "last learning rate of cosine", ge=0.0)
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", ge=0.0, lt=1.0)
    clip_grad: float | None = setting(None, "largest norm of the gradient; null: no limit", gt=0.0)
    ema: float | None = setting(
        None,
        "decay of an exponential moving average of the weights, which then is the result",
        gt=0.0,
        lt=1.0,
    )
    keep: Literal["best", "last"] = setting(
        "best", "which epoch is the result: the best top-1 on the validation split, or the last"
    )
    augment: AugmentSettings = setting(AugmentSettings, "one random view of each image a step")

    @model_validator(mode="after")
    def _schedule_is_complete(self) -> RecipeSettings:
        if self.schedule in ("multistep", "step") and not self.decay_epochs:
            raise ValueError(f"schedule {self.schedule} needs decay_epochs")
        if self.epochs and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) exceeds epochs ({self.epochs})")
        return self


class TrainSettings(RecipeSettings):
    """The teacher's recipe."""


METHODS_HELP = (
    "distillation losses, summed by weight; with an empty list the student learns only from the labels"
)


class DistillSettings(RecipeSettings):
    """The student's recipe, and its distillation methods."""

    methods: list[Any] = setting(lambda: [{"name": "msdcrd"}], METHODS_HELP)
    seed: int | None = setting(
        None,
        "seed of the student's first weights, views and order of images; null: the profile's seed",
        ge=0,
        lt=2**31,
    )
    label_weight: float = setting(1.0, "weight of the cross-entropy with the true labels", ge=0.0)
    baseline: bool = setting(
        False, "also train the same student only from the labels, to measure the gain of distillation"
    )

    @model_validator(mode="after")
    def _baseline_differs(self) -> DistillSettings:
        if self.baseline and not self.methods:
            raise ValueError(
                "methods is empty, so the student is the baseline already: set baseline to false"
            )
        return self
