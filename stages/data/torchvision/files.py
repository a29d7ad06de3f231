"""Finds the files of torchvision's sets. Light: the standard library alone.

A set is found below `root` where torchvision puts it (`root/cifar-10-batches-py`) and in `root`
itself, if its files lie there; where torchvision's place has several folders, in any of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stages.data.missing import existing_root, missing, root_of
from stages.data.places import complete_idx, idx_files_in
from stages.data.torchvision.imagenet_files import refuse_half_unpacked, refuse_packed
from stages.data.torchvision.table import SETS, TorchvisionSet

_SUFFIXES = (".jpg", ".jpeg", ".ppm")
"""Of the image files in these sets, in small letters."""


def found(settings: Any) -> Path | None:
    """The folder the set lies in, or None if it is to be downloaded first.

    Raises DataError, naming the ways to get the set, if it is neither there nor to be downloaded; for
    ImageNet also if it is there, but not or only partly unpacked.
    """
    root = root_of(settings) if settings.download else existing_root(settings)
    this = SETS[settings.name]
    steps = Path(this.folder).parts
    for first in range(len(steps) + 1):
        base = root.joinpath(*steps[first:])
        if not _lacking(this, base):
            if settings.name == "imagenet":
                refuse_half_unpacked(base)
            return base
    if settings.download and this.official:
        return None
    place = root / this.folder
    lacking = _lacking(this, place)
    if settings.name == "imagenet":
        refuse_packed(root, lacking)
    raise missing(settings, f"{', '.join(lacking)}: not there", where=str(place))


def files(settings: Any, base: Path) -> list[Path]:
    """Every file of the set that is read, sorted by its name below `base`."""
    this = SETS[settings.name]
    if not this.needed:
        here = idx_files_in(base)
        complete_idx(settings, base, here)
        return sorted(here.values())
    paths = [base / name for name in this.needed if name not in this.images]
    paths += [path for name in this.images for path in images_below(base / name)]
    names = named_by(settings.name, base)
    return sorted([*paths, names] if names else paths)


def named_by(name: str, base: Path) -> Path | None:
    """The file that names the classes of the set `name` in `base`, if it has one apart from the rest."""
    return next((base / file for file in SETS[name].named_by if (base / file).is_file()), None)


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of its folders, hidden ones left out, in no order."""
    found_files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found_files += images_below(folder / entry.name)
            elif entry.name.lower().endswith(_SUFFIXES):
                found_files.append(folder / entry.name)
    return found_files


def _lacking(this: TorchvisionSet, base: Path) -> list[str]:
    if not this.needed:
        wanted = ("train_images", "train_labels", "test_images", "test_labels")
        here = idx_files_in(base)
        names = [name for name, _ in this.official]
        return [name for role, name in zip(wanted, names, strict=True) if role not in here]
    return [name for name in this.needed if not (base / name).exists()]
