"""The preprocessing of a network's input: the data's, with the network's own mean, std and size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError
from stages.data.preprocessing import Preprocessing
from stages.models.settings import ModelSettings


def network_preprocessing(model: ModelSettings, data: Preprocessing) -> Preprocessing:
    """Return the data's preprocessing with the mean, std and size of the model's settings, if set.

    Raises:
        ModelError: The model's mean and std do not have one value for each channel.
    """
    own = model.mean is not None and model.std is not None
    mean, std = (tuple(model.mean or ()), tuple(model.std or ())) if own else (data.mean, data.std)
    if len(mean) != data.channels:
        raise ModelError(
            f"{model.model} has {len(mean)} values of mean and std for images of {data.channels} channels",
            hint="set one value of mean and std for each channel, or remove both to use the data's",
        )
    size = None if model.image_size in (None, data.image_size) else model.image_size
    return replace(data, mean=mean, std=std, network_size=size)


def resize_to(images: Tensor, side: int) -> Tensor:
    """Resize float images (n, channels, height, width) to (n, channels, side, side), antialiased bilinear."""
    return functional.interpolate(
        images, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


class MatrixResize(nn.Module):
    """`resize_to` as two products with a fixed matrix, for images of one size.

    The shapes are (n, channels, size, size) -> (n, channels, side, side). Exported files use it, because no
    ONNX operator resizes with antialiasing on every runtime.
    """

    weights: Tensor

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        # Each row of the identity is an image with one bright line; its resize is a column of the matrix.
        resized = functional.interpolate(
            torch.eye(size)[None, None],
            size=(side, size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        self.register_buffer("weights", resized[0, 0], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize the images."""
        return self.weights @ images @ self.weights.T
