"""ImageNet 2012 in torchvision's layout, and the errors for archives that are not unpacked.

Imports only the standard library.

    root/train/WNID/*.JPEG   root/val/WNID/*.JPEG   root/ILSVRC2012_devkit_t12.tar.gz or root/meta.bin

kdpipe never unpacks the archives itself: that takes hours and some 150 GB.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from stages.data.torchvision.table import (
    IMAGENET_DEVKIT,
    IMAGENET_META,
    IMAGENET_TRAIN,
    IMAGENET_VAL,
)

_ARCHIVES = {"train": IMAGENET_TRAIN, "val": IMAGENET_VAL}


def refuse_packed(root: Path, absent_splits: Sequence[str]) -> None:
    """Check that no archive of an absent split is in `root`.

    Args:
        root: The set's folder.
        absent_splits: Those of `train` and `val` that are not folders in `root`.

    Raises:
        DataError: There is such an archive; the hint contains the command that unpacks it.
    """
    present = [_ARCHIVES[split] for split in absent_splits if (root / _ARCHIVES[split]).is_file()]
    if not present:
        return
    needed = [_ARCHIVES[split] for split in absent_splits]
    if not (root / IMAGENET_META).is_file():
        needed.append(IMAGENET_DEVKIT)
    absent = [name for name in needed if not (root / name).is_file()]
    raise DataError(
        "ImageNet is not unpacked",
        where=str(root),
        why=f"{' and '.join(present)}: present, but no folder {' and no folder '.join(absent_splits)}",
        hint=_unpack(root, absent_splits, absent),
    )


def refuse_half_unpacked(root: Path) -> None:
    """Check that the training archives are all unpacked and the validation images are in class folders.

    Raises:
        DataError: The set is only partly unpacked.
    """
    with os.scandir(root / "train") as entries:
        packed = sorted(entry.name for entry in entries if entry.name.endswith(".tar"))
    if packed:
        raise DataError(
            "ImageNet's training images are only partly unpacked",
            where=str(root / "train"),
            why=f"{len(packed)} archives are still in it: {', '.join(packed[:3])}, ...",
            hint=f"remove this folder, then {_unpack(root, ['train'], [])}",
        )
    with os.scandir(root / "val") as entries:
        has_folders = any(entry.is_dir() for entry in entries if not entry.name.startswith("."))
    if not has_folders:
        raise DataError(
            "ImageNet's validation images are not sorted into class folders",
            where=str(root / "val"),
            why="it contains no folder; expected val/WNID/*.JPEG",
            hint=f"remove this folder, then {_unpack(root, ['val'], [])}",
        )


def _unpack(root: Path, splits: Sequence[str], absent: Sequence[str]) -> str:
    # Double quotes, so that the shell's single quotes around the command need no escapes.
    folder = json.dumps(str(root.absolute()), ensure_ascii=False)
    calls = "; ".join(f'ImageNet({folder}, "{split}")' for split in splits)
    command = shlex.join(["python", "-c", f"from torchvision.datasets import ImageNet; {calls}"])
    archives = [_ARCHIVES[split] for split in splits]
    first = f"put {' and '.join(absent)} into this folder (from image-net.org), then " if absent else ""
    return (
        f"{first}let torchvision unpack {' and '.join(archives)} "
        f"with {IMAGENET_DEVKIT} (takes hours and as much disk space again):\n  {command}"
    )
