"""The settings of a network in a profile."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from stages.fields import Settings, setting


class ModelSettings(Settings):
    """An architecture and its starting weights."""

    model: str = setting(
        ...,
        "timm's name of the architecture, or torchvision/NAME for a torchvision architecture",
        min_length=1,
    )
    options: dict[str, Any] = setting(
        dict, "further arguments of the architecture's constructor (`drop_path_rate: 0.1`)"
    )
    image_size: int | None = setting(
        None,
        "side of this network's square input: the data's images are resized to it on the device; null: "
        "data.image_size, the only value for a student",
        unit="pixels",
        ge=8,
        le=1024,
    )
    mean: list[float] | None = setting(
        None, "per-channel mean of this network's input on the 0..1 scale; null: the data's"
    )
    std: list[float] | None = setting(
        None, "per-channel standard deviation of this network's input on the 0..1 scale; null: the data's"
    )
    stem: Literal["standard", "small"] = setting(
        "standard",
        "small: for images of up to 64 pixels; removes the first two halvings of the map",
    )
    pretrained: bool = setting(False, "start from the library's pretrained weights (downloaded)")
    checkpoint: str | None = setting(
        None,
        "start from this file of weights (.safetensors, or a state dict saved by torch); "
        "`~` and $VARIABLES are expanded",
        keyed=False,
    )

    @model_validator(mode="after")
    def _check_weights(self) -> ModelSettings:
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint exclude each other: choose one source of weights")
        return self

    @model_validator(mode="after")
    def _check_mean_and_std(self) -> ModelSettings:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: set both or neither")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std) or len(self.std) not in (1, 3):
                raise ValueError(
                    "mean and std must each have one value for each channel: 1 for grey, 3 for RGB"
                )
            if min(self.std) <= 0.0:
                raise ValueError("std must be above zero in every channel")
        return self
