"""Downloads of torchvision's sets, by torchvision: a whole set or nothing."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from stages.data.fingerprint import certify
from stages.data.missing import missing, root_of
from stages.data.settings import TorchvisionSettings
from stages.data.torchvision.table import SETS

_TIMEOUT_S = 60.0
"""A server that sends nothing for this long has failed."""


def download(settings: TorchvisionSettings) -> Path:
    """Fetch a set with torchvision into a temporary folder, and move it once it is complete and verified.

    Returns:
        The set's folder.

    Raises:
        DataError: The set cannot be fetched. No file and no new folder remains.
    """
    root = root_of(settings)
    new_folders = [folder for folder in (root, *root.parents) if not folder.exists()]
    scratch: Path | None = None
    timeout_before = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".kdpipe-download-", dir=root))
        socket.setdefaulttimeout(_TIMEOUT_S)
        _fetch(settings.name, scratch)
        _move(scratch, root)
    except Exception as error:  # torchvision passes on all that network, disk and archives raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise missing(settings, why, where=str(root), what="cannot be downloaded") from error
    finally:
        socket.setdefaulttimeout(timeout_before)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in new_folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    base = root / SETS[settings.name].folder
    certify(settings, base)
    return base


def _fetch(name: str, root: Path) -> None:
    from torchvision import datasets

    constructors: dict[str, tuple[Any, tuple[dict[str, Any], ...]]] = {
        "cifar10": (datasets.CIFAR10, ({},)),
        "cifar100": (datasets.CIFAR100, ({},)),
        "svhn": (datasets.SVHN, ({"split": "train"}, {"split": "test"})),
        "flowers102": (datasets.Flowers102, ({},)),
        "food101": (datasets.Food101, ({},)),
        "mnist": (datasets.MNIST, ({},)),
        "fashion_mnist": (datasets.FashionMNIST, ({},)),
        "stl10": (datasets.STL10, ({},)),
        "oxford_iiit_pet": (datasets.OxfordIIITPet, ({},)),
        "eurosat": (datasets.EuroSAT, ({},)),
        "gtsrb": (datasets.GTSRB, ({"split": "train"}, {"split": "test"})),
        "dtd": (datasets.DTD, ({},)),
        "imagenette": (datasets.Imagenette, ({"size": "full"},)),
        "imagenette_320": (datasets.Imagenette, ({"size": "320px"},)),
        "imagenette_160": (datasets.Imagenette, ({"size": "160px"},)),
    }
    constructor, calls = constructors[name]
    for options in calls:
        constructor(str(root), download=True, **options)


def _move(scratch: Path, root: Path) -> None:
    for entry in sorted(scratch.iterdir()):
        target = root / entry.name
        if entry.is_dir() and target.exists():
            _move(entry, target)
        else:
            os.replace(entry, target)  # noqa: PTH105 - the name shows that it overwrites
