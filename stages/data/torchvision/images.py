"""torchvision's sets of image files: paths and labels from their authors' lists. No image is opened."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.class_folders import inner_folders
from stages.data.damaged import FETCH_AGAIN, damaged_set, reading_errors_as
from stages.data.raw import RawData, RawSplit
from stages.data.set_names import GTSRB, IMAGENETTE
from stages.data.settings import TorchvisionSettings
from stages.data.splits import VALIDATION_STREAM, cut
from stages.data.torchvision.files import class_names_file, images_below
from stages.data.torchvision.table import IMAGENET_DEVKIT, SETS

Row = tuple[Path, int]
"""An image file and its label."""


def read(settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the set `settings.name` from its files in `base`.

    Raises:
        DataError: The set's lists are damaged.
    """
    hint = (
        "make these folders readable, or unpack the archives again"
        if settings.name == "imagenet"
        else FETCH_AGAIN
    )
    with reading_errors_as(partial(damaged_set, base, hint=hint)):
        return READERS[settings.name](settings, base)


def _flowers102(_settings: TorchvisionSettings, base: Path) -> RawData:
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from torchvision import datasets

    splits = loadmat(base / "setid.mat", squeeze_me=True)
    labels = loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"].astype(np.int64) - 1
    parts = {}
    for split, key in {"train": "trnid", "validation": "valid", "test": "tstid"}.items():
        numbers = np.sort(splits[key].astype(np.int64))
        paths = [base / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
        parts[split] = RawSplit(paths, labels[numbers - 1])
    names = getattr(datasets.Flowers102, "classes", None) or [str(number) for number in range(1, 103)]
    return RawData(tuple(names), parts["train"], parts["test"], parts["validation"])


def _food101(_settings: TorchvisionSettings, base: Path) -> RawData:
    listed = {
        split: json.loads((base / "meta" / f"{split}.json").read_text(encoding="utf-8"))
        for split in ("train", "test")
    }
    classes = tuple(sorted(listed["train"]))
    train, test = (
        _split(
            (base / "images" / f"{name}.jpg", number)
            for number, label in enumerate(classes)
            for name in sorted(names[label])
        )
        for names in listed.values()
    )
    return RawData(classes, train, test)


def _pets(_settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the lists, whose lines are: image, class (from 1), species, breed of the species."""
    names: dict[int, str] = {}
    parts: list[RawSplit] = []
    for split in ("trainval", "test"):
        lines = (base / "annotations" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        rows = [(image, int(label) - 1) for image, label, _, _ in map(str.split, sorted(lines))]
        names |= {label: image.rpartition("_")[0].replace("_", " ").title() for image, label in rows}
        parts.append(_split((base / "images" / f"{image}.jpg", label) for image, label in rows))
    train, test = parts
    return RawData(tuple(names[label] for label in range(len(names))), train, test)


def _eurosat(_settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the images; the authors publish no test split, so kdpipe cuts one."""
    classes = SETS["eurosat"].images
    return RawData(classes, _split(_labelled_images(base, classes)))


def _gtsrb(settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the set and cut the validation split by tracks.

    A track is some 30 pictures of a sign, taken while a car drives past it (TRACK_PICTURE.ppm). Validation
    gets whole tracks; otherwise its pictures would be nearly equal to training pictures.
    """
    training = base / "GTSRB" / "Training"
    tracks: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for path, _ in _labelled_images(training, inner_folders(training)):
        tracks[int(path.parent.name), path.name.partition("_")[0]].append(path)
    labels = np.asarray([label for label, _ in tracks], np.int64)
    held_out = set(cut(labels, settings.validation, settings.split_seed, VALIDATION_STREAM)[1].tolist())
    parts: tuple[list[Row], list[Row]] = ([], [])
    for number, ((label, _), paths) in enumerate(tracks.items()):
        parts[number in held_out].extend((path, label) for path in paths)
    with (base / "GT-final_test.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter=";", skipinitialspace=True))
    folder = base / "GTSRB" / "Final_Test" / "Images"
    test = _split(sorted((folder / row["Filename"], int(row["ClassId"])) for row in rows))
    return RawData(GTSRB, _split(parts[False]), test, _split(parts[True]))


def _dtd(_settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the first of the ten splits that the authors publish."""
    listed = {
        part: sorted((base / "labels" / f"{part}1.txt").read_text(encoding="utf-8").split())
        for part in ("train", "val", "test")
    }
    classes = sorted({line.partition("/")[0] for line in listed["train"]})
    number = {name: label for label, name in enumerate(classes)}
    train, validation, test = (
        _split((base / "images" / line, number[line.partition("/")[0]]) for line in lines)
        for lines in listed.values()
    )
    return RawData(tuple(classes), train, test, validation)


def _imagenette(_settings: TorchvisionSettings, base: Path) -> RawData:
    classes, train, test = _by_wnid(base)
    unknown = [name for name in classes if name not in IMAGENETTE]
    if unknown:
        raise DataError(
            "these images are not Imagenette",
            where=str(base),
            why=f"these are not classes of Imagenette: {', '.join(unknown[:10])}",
            hint="set the kind of the data set: --set data.name=imagenet, or image_folder",
        )
    return RawData(tuple(IMAGENETTE[name] for name in classes), train, test)


def _imagenet(_settings: TorchvisionSettings, base: Path) -> RawData:
    """Read the set; classes are in the order of their WNIDs, like in published ImageNet weights."""
    classes, train, test = _by_wnid(base)
    return RawData(_imagenet_names(base, classes), train, test)


def _by_wnid(base: Path) -> tuple[list[str], RawSplit, RawSplit]:
    """Return the classes, the images of `train`, and those of `val`, which become the test split."""
    classes = inner_folders(base / "train")
    unknown = sorted(set(inner_folders(base / "val")) - set(classes))
    if unknown:
        raise DataError(
            "the validation images have classes that the training images do not have",
            where=str(base / "val"),
            why=f"unknown: {', '.join(unknown[:10])}",
            hint="remove these folders, or add the same classes to train",
        )
    return (
        classes,
        _split(_labelled_images(base / "train", classes)),
        _split(_labelled_images(base / "val", classes)),
    )


def _imagenet_names(base: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return each class's first name in the development kit, else its WNID.

    Equal names (there are two "crane"s) get their WNID as a suffix.
    """
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    path = class_names_file("imagenet", base)
    if path is None:
        return tuple(wnids)

    def unreadable(why: str) -> DataError:
        return DataError(
            "ImageNet's class names cannot be read",
            where=str(path),
            why=why,
            hint=f"download {IMAGENET_DEVKIT} again, or remove this file: then the WNIDs are the names",
        )

    with reading_errors_as(unreadable):
        if path.name == IMAGENET_DEVKIT:
            with tempfile.TemporaryDirectory(prefix="kdpipe-imagenet-") as scratch:
                parse_devkit_archive(scratch, str(path.absolute()))
                names = load_meta_file(scratch)[0]
        else:
            names = load_meta_file(base)[0]
        first = {wnid: names[wnid][0] if wnid in names else wnid for wnid in wnids}
    count = Counter(first.values())
    return tuple(f"{name} ({wnid})" if count[name] > 1 else name for wnid, name in first.items())


def _labelled_images(folder: Path, classes: Sequence[str]) -> Iterator[Row]:
    """Iterate over the images of the existing class folders, by class and name."""
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            yield from ((path, label) for path in sorted(images_below(folder / name)))


def _split(rows: Iterable[Row]) -> RawSplit:
    listed = list(rows)
    return RawSplit([path for path, _ in listed], np.asarray([label for _, label in listed], np.int64))


READERS: dict[str, Callable[[TorchvisionSettings, Path], RawData]] = {
    "flowers102": _flowers102,
    "food101": _food101,
    "oxford_iiit_pet": _pets,
    "eurosat": _eurosat,
    "gtsrb": _gtsrb,
    "dtd": _dtd,
    "imagenette": _imagenette,
    "imagenette_320": _imagenette,
    "imagenette_160": _imagenette,
    "imagenet": _imagenet,
}
