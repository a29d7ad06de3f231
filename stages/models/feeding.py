"""What a network is fed: the data's images, by its own constants and at its own size if it has them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError
from stages.data.preprocessing import Preprocessing
from stages.models.settings import ModelSettings


def fed(model: ModelSettings, data: Preprocessing) -> Preprocessing:
    """The data's preprocessing with what the model's settings say otherwise.

    Raises ModelError if its mean and std are not one value a channel.
    """
    own = model.mean is not None and model.std is not None
    mean, std = (tuple(model.mean or ()), tuple(model.std or ())) if own else (data.mean, data.std)
    if len(mean) != data.channels:
        raise ModelError(
            f"{model.model} has {len(mean)} values of mean and std for images of {data.channels} channels",
            hint="give mean and std one value a channel, or leave both out to take the data's",
        )
    size = None if model.image_size in (None, data.image_size) else model.image_size
    return replace(data, mean=mean, std=std, network_size=size)


def resize_to(images: Tensor, side: int) -> Tensor:
    """Float images (n, channels, height, width) as (n, channels, side, side): bilinear, antialiased."""
    return functional.interpolate(
        images, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


class Resize(nn.Module):
    """`resize_to` of images of one size as two products with a fixed matrix, (n, channels, size, size) ->
    (n, channels, side, side): for a file, as no operator of ONNX resizes with antialias on every runtime."""

    weights: Tensor

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        # Each row of the identity is an image of one bright line; its resize shows where that line goes.
        found = functional.interpolate(
            torch.eye(size)[None, None],
            size=(side, size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        self.register_buffer("weights", found[0, 0], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.weights @ images @ self.weights.T
