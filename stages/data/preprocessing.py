"""How pixels become numbers: what training, the exported file and the device all must do alike.

Light: imports the standard library alone.

An image is decoded (EXIF orientation applied), brought to grey or RGB, resized and cropped to a
square of `image_size`; the network then sees `(pixel * scale - mean) / std`, channel by channel. A network
whose own size is another (a teacher's may be) sees that resized to a square of `network_size`, bilinear and
antialiased; its exported file takes images of `image_size` and does so itself.

`crop: center` in numbers, for an image of width w and height h and S = image_size:
the shorter side becomes S, the longer one `(longer * S + shorter // 2) // shorter`; then the square
that starts at `(width - S) // 2, (height - S) // 2` is cut out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCALE = 1.0 / 255.0
"""Brings uint8 pixels to 0..1."""


@dataclass(frozen=True)
class Preprocessing:
    """The contract between the data, the networks and the device.

    image_size: side of the square image, pixels. channels: 1 (grey) or 3 (RGB, in this order).
    resize: Pillow's name of the filter (`bilinear`, `bicubic`, `nearest`, `lanczos`, `box`).
    antialias: whether the filter widens with the reduction (all but `nearest`, as Pillow does).
    scale: factor from uint8 to 0..1. mean, std: per channel on the 0..1 scale.
    crop: `center`, see the module. network_size: side of what the network sees, where it is not
    `image_size`.
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
        """Of the square image that the network sees, pixels."""
        return self.network_size or self.image_size

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; floats survive the round trip exactly."""
        facts = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.network_size is None:
            del facts["network_size"]
        return facts

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Preprocessing:
        """The reverse of `as_json`. Raises ValueError if a field is missing or unknown."""
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
    """(width, height) after the resize and before the crop: the shorter side is `image_size`."""
    shorter, longer = min(width, height), max(width, height)
    length = (longer * image_size + shorter // 2) // shorter
    return (image_size, length) if width <= height else (length, image_size)
