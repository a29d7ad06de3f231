"""ImageNet 2012 as torchvision keeps it, and what to say where it is not unpacked. Light.

    root/train/WNID/*.JPEG   root/val/WNID/*.JPEG   root/ILSVRC2012_devkit_t12.tar.gz or root/meta.bin

Its archives are never unpacked in passing: that takes hours and some 150 GB.
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


def refuse_packed(root: Path, lacking: Sequence[str]) -> None:
    """Raises DataError, with the command that unpacks them, if an archive of a lacking split is there.

    lacking: those of `train` and `val` that are no folders in `root`.
    """
    here = [_ARCHIVES[split] for split in lacking if (root / _ARCHIVES[split]).is_file()]
    if not here:
        return
    needed = [_ARCHIVES[split] for split in lacking]
    if not (root / IMAGENET_META).is_file():
        needed.append(IMAGENET_DEVKIT)
    absent = [name for name in needed if not (root / name).is_file()]
    raise DataError(
        "ImageNet is not unpacked",
        where=str(root),
        why=f"{' and '.join(here)}: there, but no folder {' and no folder '.join(lacking)}",
        hint=_unpack(root, lacking, absent),
    )


def refuse_half_unpacked(root: Path) -> None:
    """Raises DataError if an unpacking was cut short, or the validation images lie in no class folders."""
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
        sorted_out = any(entry.is_dir() for entry in entries if not entry.name.startswith("."))
    if not sorted_out:
        raise DataError(
            "ImageNet's validation images are not sorted into class folders",
            where=str(root / "val"),
            why="it holds no folder; val/WNID/*.JPEG is expected",
            hint=f"remove this folder, then {_unpack(root, ['val'], [])}",
        )


def _unpack(root: Path, splits: Sequence[str], absent: Sequence[str]) -> str:
    # In double quotes, so that the shell's single ones around the command stay readable.
    place = json.dumps(str(root.absolute()), ensure_ascii=False)
    calls = "; ".join(f'ImageNet({place}, "{split}")' for split in splits)
    command = shlex.join(["python", "-c", f"from torchvision.datasets import ImageNet; {calls}"])
    archives = [_ARCHIVES[split] for split in splits]
    first = f"put {' and '.join(absent)} beside it (from image-net.org), then " if absent else ""
    return (
        f"{first}let torchvision unpack {' and '.join(archives)} "
        f"with the help of {IMAGENET_DEVKIT} (hours, and as much space again):\n  {command}"
    )
