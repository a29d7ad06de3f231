"""Sets that torchvision knows, read from where it keeps them, or downloaded by it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stages.data.damaged import damaged_set, reading
from stages.data.idx import read_splits
from stages.data.places import idx_files_in
from stages.data.raw import RawData, RawSplit
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


def to_be_downloaded(settings: TorchvisionSettings) -> bool:
    """Whether the set is not there and may be fetched. DataError if it is not there and may not."""
    return torchvision_files.found(settings) is None


def read(settings: TorchvisionSettings) -> RawData:
    """The set, downloaded first if it is not there and `settings.download` says so.

    Raises DataError for a set that is missing or damaged, or cannot be downloaded.
    """
    base = torchvision_files.found(settings) or download(settings)
    if settings.name in ("mnist", "fashion_mnist"):
        train, test = read_splits(idx_files_in(base))
        return RawData(_FASHION if settings.name == "fashion_mnist" else _DIGITS, train, test)
    if settings.name in torchvision_images.READERS:
        return torchvision_images.read(settings, base)
    with reading(partial(damaged_set, base)):
        try:
            return {"svhn": _svhn, "stl10": _stl10}.get(settings.name, partial(_cifar, settings.name))(base)
        except RuntimeError as error:  # torchvision's word for a checksum that is not the official one
            raise damaged_set(base, f"the files of {settings.name} are not the official ones") from error


def _cifar(name: str, base: Path) -> RawData:
    from torchvision import datasets

    known = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    # torchvision joins root and base_folder; so the set is found under any folder name.
    here = type(known.__name__, (known,), {"base_folder": ""})
    train, test = here(str(base), train=True), here(str(base), train=False)
    return RawData(
        tuple(train.classes),
        RawSplit(train.data, np.asarray(train.targets, np.int64)),
        RawSplit(test.data, np.asarray(test.targets, np.int64)),
    )


def _svhn(base: Path) -> RawData:
    from torchvision import datasets

    parts = [datasets.SVHN(str(base), split=split) for split in ("train", "test")]
    train, test = (RawSplit(_last(part.data), np.asarray(part.labels, np.int64)) for part in parts)
    return RawData(_DIGITS, train, test)


def _stl10(base: Path) -> RawData:
    from torchvision import datasets

    # Without the 2.6 GB of unlabelled images, which torchvision would verify on each reading.
    ours = {"base_folder": "", "train_list": datasets.STL10.train_list[:2]}
    here = type("STL10", (datasets.STL10,), ours)
    parts = [here(str(base), split=split) for split in ("train", "test")]
    train, test = (RawSplit(_last(part.data), np.asarray(part.labels, np.int64)) for part in parts)
    return RawData(tuple(parts[0].classes), train, test)


def _last(images: np.ndarray) -> np.ndarray:
    """(N,C,H,W) -> (N,H,W,C), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
