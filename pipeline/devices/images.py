"""The test images for devices: written once in a call, and only if a device measures with them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from pipeline.devices.files import LocalFile, Report, deliver, local_file
from pipeline.devices.link import Link
from pipeline.errors import StageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.key_facts import resolve
from stages import DEVICE_IMAGES

IMAGE_SETS_PER_DEVICE = 3
"""Sets of test images that stay on a device for the next measurement."""


@dataclass(frozen=True)
class DeliveredImages:
    """Test images on a device.

    Attributes:
        device_path: Their file, relative to the device's folder.
        count: How many images the file has.
    """

    device_path: str
    count: int


class TestImages:
    """The profile's test images, as many as each device needs. Several threads may deliver at once.

    Args:
        profile: The profile.
        folder: The folder that the files are written to.
    """

    def __init__(self, profile: LoadedProfile, folder: Path) -> None:
        self._profile, self._folder = profile, folder
        self._files: dict[int | None, tuple[LocalFile, int]] = {}
        self._lock = threading.Lock()

    def deliver(self, link: Link, report: Report) -> DeliveredImages | None:
        """Copy the images to a device.

        Args:
            link: The link to the device.
            report: Prints a line when the images are on the device.

        Returns:
            The images there; None if the device's `accuracy_images` is 0.

        Raises:
            StageError: The device cannot store them.
            DataError: They cannot be read on this machine.
        """
        limit = link.settings["accuracy_images"]
        if limit == 0:
            return None
        file, count = self._file(limit)
        device_folder = f"images/{file.sha256}"
        try:
            sent_bytes = deliver(link, {"images.npy": file}, device_folder, report)
            link.call("keep_newest", place=device_folder, keep=IMAGE_SETS_PER_DEVICE)
        except StageError as error:
            error.hint = (
                error.hint or f"free disk space on the device, or lower devices.{link.name}.accuracy_images"
            )
            raise
        report(f"{link.name}: {count} test images are on the device ({sent_bytes} bytes sent)")
        return DeliveredImages(f"{device_folder}/images.npy", count)

    def _file(self, limit: int | None) -> tuple[LocalFile, int]:
        with self._lock:
            if limit not in self._files:
                path = self._folder / f"images-{'all' if limit is None else limit}.npy"
                count = resolve(DEVICE_IMAGES)(self._profile.settings(("data",)), limit, path)
                self._files[limit] = local_file(path), count
            return self._files[limit]
