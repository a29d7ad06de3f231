"""The preprocessing contract: training, the exported file and the device do exactly this.

Imports only the standard library.

An image is decoded (EXIF orientation applied), converted to grey or RGB, resized and cropped to a
square of `image_size`. The network's input is `(pixel * scale - mean) / std`, for each channel. A network
with another input size (teachers can have one) gets this resized to a square of `network_size`, bilinear and
antialiased; its exported file takes images of `image_size` and contains that resize.

`crop: center` in numbers, for an image of width w and height h and S = image_size:
the shorter side becomes S, the longer side `(longer * S + shorter // 2) // shorter`; the crop is the square
that starts at `(width - S) // 2, (height - S) // 2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCALE = 1.0 / 255.0
"""The factor from uint8 pixels to 0..1."""


@dataclass(frozen=True)
class Preprocessing:
    """The contract between the data, the networks and the device.

    Attributes:
        image_size: Side of the square image, pixels.
        channels: 1 (grey) or 3 (RGB, in this order).
        resize: Pillow's name of the filter (`bilinear`, `bicubic`, `nearest`, `lanczos`, `box`).
        antialias: Whether the filter widens with the reduction (true for all but `nearest`, like Pillow).
        scale: Factor from uint8 to 0..1.
        mean: Mean of each channel on the 0..1 scale.
        std: Standard deviation of each channel on the 0..1 scale.
        crop: `center`; the module's docstring defines it.
        network_size: Side of the network's input, pixels; None: `image_size`.
    """

    image_size: int
    channels: int
    resize: str
    antialias: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: str = "center"
    network_size: int | None = None

    @property
    def side(self) -> int:
        """Side of the network's input, pixels."""
        return self.network_size or self.image_size

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` restores floats exactly."""
        facts = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.network_size is None:
            del facts["network_size"]
        return facts

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `as_json` wrote.

        Raises:
            ValueError: A field is missing or unknown.
        """
        try:
            return Preprocessing(
                **{
                    **facts,
                    "mean": tuple(float(value) for value in facts["mean"]),
                    "std": tuple(float(value) for value in facts["std"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a preprocessing contract: {error}") from error


def resized(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Return (width, height) after the resize and before the crop: the shorter side is `image_size`."""
    shorter, longer = min(width, height), max(width, height)
    length = (longer * image_size + shorter // 2) // shorter
    return (image_size, length) if width <= height else (length, image_size)
