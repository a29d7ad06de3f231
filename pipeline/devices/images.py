"""The test images for devices: written once a command, and only if a device is to measure with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.devices.files import Item, deliver, item_of
from pipeline.devices.link import Link
from pipeline.errors import StageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.plan import resolve
from stages import DEVICE_IMAGES

KEPT_THERE = 3
"""Sets of test images that stay on a device for the next measurement."""


@dataclass(frozen=True)
class Sent:
    """Test images on a device: where they lie below its folder, and how many they are."""

    place: str
    count: int


class TestImages:
    """The profile's test images, as many as each device wants; several threads may ask at once."""

    def __init__(self, profile: LoadedProfile, folder: Path) -> None:
        """folder: where the files are written."""
        self._profile, self._folder = profile, folder
        self._made: dict[int | None, tuple[Item, int]] = {}
        self._lock = threading.Lock()

    def deliver(self, link: Link, tell: Callable[[str], None]) -> Sent | None:
        """Brings the images to the device; None if it wants none.

        Raises StageError if the device cannot take them, DataError if they cannot be read here.
        """
        asked = link.settings["accuracy_images"]
        if asked == 0:
            return None
        item, count = self._item(asked)
        place = f"images/{item.sha256}"
        try:
            sent = deliver(link, {"images.npy": item}, place, tell)
            link.ask("keep_newest", place=place, keep=KEPT_THERE)
        except StageError as error:
            error.hint = error.hint or f"make room there, or set devices.{link.name}.accuracy_images lower"
            raise
        tell(f"{link.name}: {count} test images are there ({sent} bytes sent)")
        return Sent(f"{place}/images.npy", count)

    def _item(self, asked: int | None) -> tuple[Item, int]:
        with self._lock:
            if asked not in self._made:
                file = self._folder / f"images-{'all' if asked is None else asked}.npy"
                count = resolve(DEVICE_IMAGES)(self._profile.settings(("data",)), asked, file)
                self._made[asked] = item_of(file), count
            return self._made[asked]
