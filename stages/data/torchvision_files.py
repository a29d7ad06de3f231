"""Where torchvision keeps its sets and how their official files are known. Light: standard library.

A set is found both below `root` where torchvision puts it (`root/cifar-10-batches-py`) and in
`root` itself, if its files lie there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.missing import existing_root, missing, root_of
from stages.data.places import complete_idx, idx_files_in


@dataclass(frozen=True)
class TorchvisionSet:
    """folder: where torchvision puts it, below the root. needed: what must lie there.
    images: the folder of its image files, if it has them one by one.
    official: MD5 of what torchvision downloads, by file name, as its authors publish them."""

    folder: str
    needed: tuple[str, ...]
    official: tuple[tuple[str, str], ...]
    images: str = ""


_CIFAR10 = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")

SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet(
        "cifar-10-batches-py", _CIFAR10, (("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),)
    ),
    "cifar100": TorchvisionSet(
        "cifar-100-python",
        ("train", "test", "meta"),
        (("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    ),
    "svhn": TorchvisionSet(
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        (
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
    "flowers102": TorchvisionSet(
        "flowers-102",
        ("imagelabels.mat", "setid.mat", "jpg"),
        (
            ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        images="jpg",
    ),
    "food101": TorchvisionSet(
        "food-101",
        ("meta/train.json", "meta/test.json", "images"),
        (("food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
        images="images",
    ),
    "fashion_mnist": TorchvisionSet(
        "FashionMNIST/raw",
        (),
        (
            ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "mnist": TorchvisionSet(
        "MNIST/raw",
        (),
        (
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
}


def found(settings: Any) -> Path | None:
    """The folder the set lies in, or None if it is to be downloaded first.

    Raises DataError, naming the ways to get the set, if it is neither there nor to be downloaded.
    """
    root = root_of(settings) if settings.download else existing_root(settings)
    this = SETS[settings.name]
    lacking: list[str] = []
    for base in dict.fromkeys((root / this.folder, root)):
        lacking = lacking or _lacking(this, root / this.folder)
        if not _lacking(this, base):
            return base
    if settings.download:
        return None
    raise missing(settings, f"{', '.join(lacking)}: not there", where=str(root / this.folder))


def files(settings: Any, base: Path) -> list[Path]:
    """Every file of the set that is read, sorted by its name below `base`."""
    this = SETS[settings.name]
    if not this.needed:
        here = idx_files_in(base)
        complete_idx(settings, base, here)
        return sorted(here.values())
    paths = [base / name for name in this.needed if name != this.images]
    if this.images:
        paths += _below(base / this.images)
    return sorted(paths)


def _lacking(this: TorchvisionSet, base: Path) -> list[str]:
    if not this.needed:
        wanted = ("train_images", "train_labels", "test_images", "test_labels")
        here = idx_files_in(base)
        names = [name for name, _ in this.official]
        return [name for role, name in zip(wanted, names, strict=True) if role not in here]
    return [name for name in this.needed if not (base / name).exists()]


def _below(folder: Path) -> list[Path]:
    """The image files of a folder and of its folders, hidden ones left out."""
    found_files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found_files += _below(folder / entry.name)
            elif entry.name.lower().endswith(".jpg"):
                found_files.append(folder / entry.name)
    return found_files
