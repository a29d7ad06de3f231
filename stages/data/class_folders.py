"""Finds the images of a folder of class folders. Light: the standard library alone.

Two layouts: `root/CLASS/*` and `root/train/CLASS/*` with `root/test`, `root/val`, `root/valid` or
`root/validation` beside it. The second is meant where `root/train` holds folders, so a class may
be called `train`. Hidden files and folders are passed over, so are files that are no images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from stages.data.missing import LAYOUTS, existing_root, missing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

_TRAIN = "train"
_TEST = "test"
_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class ClassFolders:
    """Image names by class, classes and names in code point order.

    train, validation, test: class -> names relative to the folder of that split.
    folders: the split's folder, by `train`, `validation`, `test`; only those that exist.
    ignored: how many folders inside class folders were passed over.
    """

    root: Path
    train: dict[str, tuple[str, ...]]
    validation: dict[str, tuple[str, ...]] | None = None
    test: dict[str, tuple[str, ...]] | None = None
    folders: dict[str, Path] = field(default_factory=dict)
    ignored: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.train)

    def files(self) -> list[Path]:
        """Every image, in the order train, validation, test."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return [
            self.folders[split] / name / file
            for split, classes in parts.items()
            for name, files in (classes or {}).items()
            for file in files
        ]


def class_folders(settings: Any) -> ClassFolders:
    """Lists the set's images without opening them.

    Raises DataError for a missing or empty root, fewer than two classes, a class without images,
    and test or validation classes that training does not know.
    """
    root = existing_root(settings)
    try:
        found = _scan(root)
    except OSError as error:
        raise DataError(
            "the image folder cannot be read",
            where=error.filename or str(root),
            why=error.strerror or str(error),
            hint=f"make it readable: chmod -R a+rX {root}",
        ) from error
    _refuse_unusable(settings, found)
    return found


def _scan(root: Path) -> ClassFolders:
    top = inner_folders(root)
    if _TRAIN in top and inner_folders(root / _TRAIN):
        folders = {"train": root / _TRAIN}
        held_out = [name for name in _VALIDATION if name in top]
        if len(held_out) > 1:
            raise DataError(
                "the image folder has two validation splits",
                where=str(root),
                why=f"{' and '.join(held_out)} mean the same",
                hint=f"keep one of them, and call the other one {_TEST} if it is the test split",
            )
        if _TEST in top:
            folders["test"] = root / _TEST
        if held_out:
            folders["validation" if _TEST in top else "test"] = root / held_out[0]
    else:
        folders = {"train": root}
    ignored = 0
    splits: dict[str, dict[str, tuple[str, ...]]] = {}
    for split, folder in folders.items():
        splits[split] = {}
        for name in inner_folders(folder):
            files, inner = _images(folder / name)
            splits[split][name] = files
            ignored += inner
    return ClassFolders(
        root=root,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        folders=folders,
        ignored=ignored,
    )


def inner_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def _images(folder: Path) -> tuple[tuple[str, ...], int]:
    files: list[str] = []
    inner = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A broken link is no folder: it counts as an image, and is named when it cannot be read.
            if entry.is_dir():
                inner += 1
            elif entry.name.lower().endswith(SUFFIXES):
                files.append(entry.name)
    return tuple(sorted(files)), inner


def _refuse_unusable(settings: Any, found: ClassFolders) -> None:
    place = str(found.folders["train"])
    if not found.train:
        raise missing(settings, "there are no class folders in it", where=place)
    if not any(found.train.values()):
        raise missing(settings, f"none of its {len(found.train)} class folders holds an image", where=place)
    empty = [name for name, files in found.train.items() if not files]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(found.train)} class folders hold no image",
            where=place,
            why=f"{_few(empty)}: no file ending in {', '.join(SUFFIXES)} directly inside",
            hint=f"put images there or remove the folder; the layout is {LAYOUTS['image_folder']}",
        )
    if len(found.train) < 2:
        raise DataError(
            "the image folder has one class only",
            where=place,
            why=f"the only class folder is {found.classes[0]}; telling classes apart takes two",
            hint="point data.root at the folder that holds one folder a class, or add a class",
        )
    for split in ("test", "validation"):
        classes = getattr(found, split)
        extra = sorted(set(classes or ()) - set(found.train))
        if extra:
            raise DataError(
                f"the {split} split has classes that the training split has not",
                where=str(found.folders[split]),
                why=f"unknown: {_few(extra)}",
                hint="rename these folders to the training classes they mean, or remove them",
            )
        if classes is not None and not any(classes.values()):
            raise DataError(
                f"the {split} split holds no image",
                where=str(found.folders[split]),
                why="no class folder with images in it",
                hint="put images there, or remove the folder: then the split is cut from training",
            )


def _few(names: list[str], most: int = 10) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
