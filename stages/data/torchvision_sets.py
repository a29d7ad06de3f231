"""Sets that torchvision knows, read from where it keeps them, or downloaded by it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from stages.data import torchvision_files
from stages.data.fingerprint import certify
from stages.data.idx import read_splits
from stages.data.missing import missing, root_of
from stages.data.places import idx_files_in
from stages.data.raw import RawData, RawSplit
from stages.data.settings import TorchvisionSettings

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

_SILENCE_S = 60.0
"""A server that says nothing for so long has failed."""


def to_be_downloaded(settings: TorchvisionSettings) -> bool:
    """Whether the set is not there and may be fetched. DataError if it is not there and may not."""
    return torchvision_files.found(settings) is None


def read(settings: TorchvisionSettings) -> RawData:
    """The set, downloaded first if it is not there and `settings.download` says so.

    Raises DataError for a set that is missing or damaged, or cannot be downloaded.
    """
    base = torchvision_files.found(settings) or _download(settings)
    if settings.name in ("mnist", "fashion_mnist"):
        train, test = read_splits(idx_files_in(base))
        return RawData(_FASHION if settings.name == "fashion_mnist" else _DIGITS, train, test)
    if settings.name == "food101":
        return _food101(base)
    if settings.name == "flowers102":
        return _flowers102(base)
    with _verified(settings, base):
        if settings.name == "svhn":
            return _svhn(base)
        return _cifar(settings.name, base)


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
    train, test = (
        RawSplit(np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), np.asarray(part.labels, np.int64))
        for part in parts
    )
    return RawData(_DIGITS, train, test)


def _flowers102(base: Path) -> RawData:
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from torchvision import datasets

    with _readable(base):
        splits = loadmat(base / "setid.mat", squeeze_me=True)
        of_image = loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"].astype(np.int64) - 1
        parts = {}
        for split, key in {"train": "trnid", "validation": "valid", "test": "tstid"}.items():
            numbers = np.sort(splits[key].astype(np.int64))
            paths = [base / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
            parts[split] = RawSplit(paths, of_image[numbers - 1])
    names = getattr(datasets.Flowers102, "classes", None) or [str(number) for number in range(1, 103)]
    return RawData(tuple(names), parts["train"], parts["test"], parts["validation"])


def _food101(base: Path) -> RawData:
    with _readable(base):
        listed = {
            split: json.loads((base / "meta" / f"{split}.json").read_text(encoding="utf-8"))
            for split in ("train", "test")
        }
        classes = tuple(sorted(listed["train"]))
        parts = {}
        for split, names in listed.items():
            paths = [base / "images" / f"{name}.jpg" for label in classes for name in sorted(names[label])]
            labels = [number for number, label in enumerate(classes) for _ in names[label]]
            parts[split] = RawSplit(paths, np.asarray(labels, np.int64))
    return RawData(classes, parts["train"], parts["test"])


@contextmanager
def _readable(base: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise _damaged(base, f"{type(error).__name__}: {error}") from error


@contextmanager
def _verified(settings: TorchvisionSettings, base: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        if isinstance(error, RuntimeError):  # torchvision's word for a checksum that is not the official one
            raise _damaged(base, f"the files of {settings.name} are not the official ones") from error
        raise _damaged(base, f"{type(error).__name__}: {error}") from error


def _damaged(base: Path, why: str) -> DataError:
    return DataError(
        "the data set is damaged",
        where=str(base),
        why=why,
        mend="remove these files and let them be fetched again: kdpipe run PROFILE --set data.download=true",
    )


def _download(settings: TorchvisionSettings) -> Path:
    """Fetches the set beside its place and moves it there when it is whole and verified."""
    root = root_of(settings)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    scratch: Path | None = None
    before = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".kdpipe-download-", dir=root))
        socket.setdefaulttimeout(_SILENCE_S)
        _fetch(settings.name, scratch)
        _move(scratch, root)
    except Exception as error:  # torchvision lets through whatever network, disk and archives raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise missing(settings, why, where=str(root), what="cannot be downloaded") from error
    finally:
        socket.setdefaulttimeout(before)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    base = root / torchvision_files.SETS[settings.name].folder
    certify(settings, base)
    return base


def _fetch(name: str, root: Path) -> None:
    from torchvision import datasets

    makers: dict[str, tuple[Any, tuple[dict[str, Any], ...]]] = {
        "cifar10": (datasets.CIFAR10, ({},)),
        "cifar100": (datasets.CIFAR100, ({},)),
        "svhn": (datasets.SVHN, ({"split": "train"}, {"split": "test"})),
        "flowers102": (datasets.Flowers102, ({},)),
        "food101": (datasets.Food101, ({},)),
        "mnist": (datasets.MNIST, ({},)),
        "fashion_mnist": (datasets.FashionMNIST, ({},)),
    }
    maker, parts = makers[name]
    for options in parts:
        maker(str(root), download=True, **options)


def _move(scratch: Path, root: Path) -> None:
    for entry in sorted(scratch.iterdir()):
        target = root / entry.name
        if entry.is_dir() and target.exists():
            _move(entry, target)
        else:
            os.replace(entry, target)  # noqa: PTH105 - the name says that it may overwrite
