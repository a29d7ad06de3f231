"""torchvision's sets, read from torchvision's folders or downloaded by torchvision."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stages.data.damaged import damaged_set, reading_errors_as
from stages.data.idx import read_splits
from stages.data.raw import RawData, RawSplit
from stages.data.set_files import idx_files_in
from stages.data.settings import TorchvisionSettings
from stages.data.torchvision import files as torchvision_files
from stages.data.torchvision import images as torchvision_images
from stages.data.torchvision.download import download

_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple(str(digit) for digit in range(10))


def needs_download(settings: TorchvisionSettings) -> bool:
    """Return whether the set is missing and its download is allowed.

    Raises:
        DataError: The set is missing and no download is allowed.
    """
    return torchvision_files.locate(settings) is None


def read(settings: TorchvisionSettings) -> RawData:
    """Read the set; download it first if it is missing and `settings.download` is true.

    Raises:
        DataError: The set is missing or damaged, or cannot be downloaded.
    """
    base = torchvision_files.locate(settings) or download(settings)
    if settings.name in ("mnist", "fashion_mnist"):
        train, test = read_splits(idx_files_in(base))
        return RawData(_FASHION if settings.name == "fashion_mnist" else _DIGITS, train, test)
    if settings.name in torchvision_images.READERS:
        return torchvision_images.read(settings, base)
    with reading_errors_as(partial(damaged_set, base)):
        try:
            return {"svhn": _svhn, "stl10": _stl10}.get(settings.name, partial(_cifar, settings.name))(base)
        except RuntimeError as error:  # torchvision's error for a wrong checksum
            raise damaged_set(base, f"the files of {settings.name} are not the official ones") from error


def _cifar(name: str, base: Path) -> RawData:
    from torchvision import datasets

    original = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    # torchvision joins root and base_folder; an empty base_folder allows any folder name.
    cifar = type(original.__name__, (original,), {"base_folder": ""})
    train, test = cifar(str(base), train=True), cifar(str(base), train=False)
    return RawData(
        tuple(train.classes),
        RawSplit(train.data, np.asarray(train.targets, np.int64)),
        RawSplit(test.data, np.asarray(test.targets, np.int64)),
    )


def _svhn(base: Path) -> RawData:
    from torchvision import datasets

    parts = [datasets.SVHN(str(base), split=split) for split in ("train", "test")]
    train, test = (RawSplit(_channels_last(part.data), np.asarray(part.labels, np.int64)) for part in parts)
    return RawData(_DIGITS, train, test)


def _stl10(base: Path) -> RawData:
    from torchvision import datasets

    # Without the 2.6 GB of unlabelled images, which torchvision would verify every time.
    overrides = {"base_folder": "", "train_list": datasets.STL10.train_list[:2]}
    stl10 = type("STL10", (datasets.STL10,), overrides)
    parts = [stl10(str(base), split=split) for split in ("train", "test")]
    train, test = (RawSplit(_channels_last(part.data), np.asarray(part.labels, np.int64)) for part in parts)
    return RawData(tuple(parts[0].classes), train, test)


def _channels_last(images: np.ndarray) -> np.ndarray:
    """Convert (N, C, H, W) to (N, H, W, C), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
