"""The networks of a run as torch modules, and images in the form that they take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from stages.data.images import ImageFormat, UnreadableImage, decode
from stages.data.preprocessing import Preprocessing
from stages.models import card
from stages.models.network_input import resize_to


def load(folder: Path) -> nn.Module:
    """Return the network of an artefact, in eval mode on the CPU."""
    network, _ = card.load(folder)
    return network


def preprocess(
    images: Sequence[str | os.PathLike[str] | np.ndarray] | np.ndarray, contract: Preprocessing
) -> Tensor:
    """Decode, resize and normalise images.

    Args:
        images: Image files, or uint8 arrays (H, W), (H, W, 1) or (H, W, 3).
        contract: The network's preprocessing.

    Returns:
        float32 (N, channels, side, side).

    Raises:
        DataError: An image cannot be read, or an array is not an image.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    form = ImageFormat(contract.image_size, contract.channels, contract.resize)
    squares = [_decoded(image, form, number) for number, image in enumerate(images)]
    pixels = torch.from_numpy(np.stack(squares) if squares else np.zeros((0, *form.shape), np.uint8))
    mean = torch.tensor(contract.mean, dtype=torch.float64)
    std = torch.tensor(contract.std, dtype=torch.float64)
    normalised = pixels.float() * (contract.scale / std).float() + (-mean / std).float()
    channels_first = normalised.permute(0, 3, 1, 2).contiguous()
    return channels_first if contract.network_size is None else resize_to(channels_first, contract.side)


def _decoded(image: str | os.PathLike[str] | np.ndarray, form: ImageFormat, number: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        source: Path | np.ndarray = image
        where = f"image {number}"
        if image.dtype != np.uint8 or not _is_image(image.shape):
            raise DataError(
                "An array is not an image",
                where=where,
                why=f"it is {image.dtype} {image.shape}",
                hint="give uint8 arrays (H, W), (H, W, 1) or (H, W, 3)",
            )
    else:
        source = Path(image)
        where = str(source)
    try:
        return decode(source, form)
    except UnreadableImage as error:
        raise DataError("An image cannot be read", where=where, why=str(error), hint="remove it") from error


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
