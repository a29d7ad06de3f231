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
    stem: Literal["standard", "small"] = setting(
        "standard",
        "small: for images of 64 pixels and below, the first two halvings of the map are left out",
    )
    pretrained: bool = setting(False, "start from the library's pretrained weights (they are downloaded)")
    checkpoint: str | None = setting(
        None,
        "start from this file of weights (.safetensors, or a state dict saved by torch)",
        keyed=False,
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSettings:
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint exclude each other: choose one source of weights")
        return self
