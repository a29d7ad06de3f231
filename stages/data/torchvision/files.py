"""The files of torchvision's sets. Imports only the standard library.

A set can be in torchvision's folder below `root` (`root/cifar-10-batches-py`) or in `root`
itself. If torchvision's folder has several levels (`eurosat/2750`), leading levels may be absent.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stages.data.missing import existing_root, missing, root_of
from stages.data.set_files import idx_files_in, require_complete_idx
from stages.data.torchvision.imagenet_files import refuse_half_unpacked, refuse_packed
from stages.data.torchvision.table import SETS, TorchvisionSet

_SUFFIXES = (".jpg", ".jpeg", ".ppm")
"""Suffixes of the image files in these sets, in lower case."""


def locate(settings: Any) -> Path | None:
    """Return the set's folder, or None if the set has to be downloaded first.

    Raises:
        DataError: The set is missing and no download is allowed; the hint lists the ways to get it. For
            ImageNet also: the archives are not unpacked, or only partly.
    """
    root = root_of(settings) if settings.download else existing_root(settings)
    facts = SETS[settings.name]
    levels = Path(facts.folder).parts
    for first in range(len(levels) + 1):
        base = root.joinpath(*levels[first:])
        if not _absent_files(facts, base):
            if settings.name == "imagenet":
                refuse_half_unpacked(base)
            return base
    if settings.download and facts.official:
        return None
    folder = root / facts.folder
    absent = _absent_files(facts, folder)
    if settings.name == "imagenet":
        refuse_packed(root, absent)
    raise missing(settings, f"{', '.join(absent)}: missing", where=str(folder))


def files(settings: Any, base: Path) -> list[Path]:
    """Return all files that reading the set opens, sorted by their names below `base`.

    Raises:
        DataError: An IDX file is missing.
    """
    facts = SETS[settings.name]
    if not facts.needed:
        idx_files = idx_files_in(base)
        require_complete_idx(settings, base, idx_files)
        return sorted(idx_files.values())
    paths = [base / name for name in facts.needed if name not in facts.images]
    paths += [path for name in facts.images for path in images_below(base / name)]
    names = class_names_file(settings.name, base)
    return sorted([*paths, names] if names else paths)


def class_names_file(name: str, base: Path) -> Path | None:
    """Return the optional file in `base` that contains the class names of the set `name`, or None."""
    return next((base / file for file in SETS[name].class_names if (base / file).is_file()), None)


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, without hidden ones, in no order."""
    image_files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                image_files += images_below(folder / entry.name)
            elif entry.name.lower().endswith(_SUFFIXES):
                image_files.append(folder / entry.name)
    return image_files


def _absent_files(facts: TorchvisionSet, base: Path) -> list[str]:
    if not facts.needed:
        roles = ("train_images", "train_labels", "test_images", "test_labels")
        idx_files = idx_files_in(base)
        names = [name for name, _ in facts.official]
        return [name for role, name in zip(roles, names, strict=True) if role not in idx_files]
    return [name for name in facts.needed if not (base / name).exists()]
