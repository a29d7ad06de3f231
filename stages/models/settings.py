"""What a profile may say of a network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from stages.fields import Settings, setting


class ModelSettings(Settings):
    """An architecture and where its weights start."""

    model: str = setting(
        ...,
        "timm's name of the architecture, or torchvision/NAME for one of torchvision's",
        min_length=1,
    )
    options: dict[str, Any] = setting(
        dict, "further arguments of the architecture's constructor (`drop_path_rate: 0.1`)"
    )
    image_size: int | None = setting(
        None,
        "side of the square images that this network sees: the data's are resized to it on the device; null: "
        "data.image_size, which is all that a student may have",
        unit="pixels",
        ge=8,
        le=1024,
    )
    mean: list[float] | None = setting(
        None, "per-channel mean on the 0..1 scale that this network is fed by; null: the data's"
    )
    std: list[float] | None = setting(
        None, "per-channel standard deviation on the 0..1 scale that this network is fed by; null: the data's"
    )
    stem: Literal["standard", "small"] = setting(
        "standard",
        "small: for images of 64 pixels and below, the first two halvings of the map are left out",
    )
    pretrained: bool = setting(False, "start from the library's pretrained weights (they are downloaded)")
    checkpoint: str | None = setting(
        None,
        "start from this file of weights (.safetensors, or a state dict saved by torch); "
        "`~` and $VARIABLES are expanded",
        keyed=False,
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSettings:
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint exclude each other: choose one source of weights")
        return self

    @model_validator(mode="after")
    def _constants_fit(self) -> ModelSettings:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std) or len(self.std) not in (1, 3):
                raise ValueError("mean and std must have one value a channel each: 1 for grey, 3 for RGB")
            if min(self.std) <= 0.0:
                raise ValueError("std must be above zero in every channel")
        return self
