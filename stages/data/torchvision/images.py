"""torchvision's sets of image files: their paths and labels, by their authors' lists. No image is opened."""

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
from stages.data.damaged import FETCH_AGAIN, damaged_set, reading
from stages.data.raw import RawData, RawSplit
from stages.data.set_names import GTSRB, IMAGENETTE
from stages.data.settings import TorchvisionSettings
from stages.data.splits import VALIDATION_STREAM, cut
from stages.data.torchvision.files import images_below, named_by
from stages.data.torchvision.table import IMAGENET_DEVKIT, SETS

Row = tuple[Path, int]
"""An image file and its label."""


def read(settings: TorchvisionSettings, base: Path) -> RawData:
    """The set `settings.name` whose files lie in `base`. Raises DataError if its lists are damaged."""
    hint = (
        "make these folders readable, or unpack the archives again"
        if settings.name == "imagenet"
        else FETCH_AGAIN
    )
    with reading(partial(damaged_set, base, hint=hint)):
        return READERS[settings.name](settings, base)


def _flowers102(settings: TorchvisionSettings, base: Path) -> RawData:
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from torchvision import datasets

    splits = loadmat(base / "setid.mat", squeeze_me=True)
    of_image = loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"].astype(np.int64) - 1
    parts = {}
    for split, key in {"train": "trnid", "validation": "valid", "test": "tstid"}.items():
        numbers = np.sort(splits[key].astype(np.int64))
        paths = [base / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
        parts[split] = RawSplit(paths, of_image[numbers - 1])
    names = getattr(datasets.Flowers102, "classes", None) or [str(number) for number in range(1, 103)]
    return RawData(tuple(names), parts["train"], parts["test"], parts["validation"])


def _food101(settings: TorchvisionSettings, base: Path) -> RawData:
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


def _pets(settings: TorchvisionSettings, base: Path) -> RawData:
    """Lines of the lists: image, class from 1, species, breed of its species."""
    names: dict[int, str] = {}
    parts: list[RawSplit] = []
    for split in ("trainval", "test"):
        lines = (base / "annotations" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        rows = [(image, int(label) - 1) for image, label, _, _ in map(str.split, sorted(lines))]
        names |= {label: image.rpartition("_")[0].replace("_", " ").title() for image, label in rows}
        parts.append(_split((base / "images" / f"{image}.jpg", label) for image, label in rows))
    train, test = parts
    return RawData(tuple(names[label] for label in range(len(names))), train, test)


def _eurosat(settings: TorchvisionSettings, base: Path) -> RawData:
    """No test split is published, so one is cut."""
    classes = SETS["eurosat"].images
    return RawData(classes, _split(_labelled(base, classes)))


def _gtsrb(settings: TorchvisionSettings, base: Path) -> RawData:
    """Training images come in tracks: some 30 pictures of one sign as a car drives by, TRACK_PICTURE.ppm.

    Validation takes whole tracks, else it would be made of pictures nearly the same as those learnt from.
    """
    training = base / "GTSRB" / "Training"
    tracks: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for path, _ in _labelled(training, inner_folders(training)):
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


def _dtd(settings: TorchvisionSettings, base: Path) -> RawData:
    """The first of the ten ways in which its authors divide it."""
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


def _imagenette(settings: TorchvisionSettings, base: Path) -> RawData:
    classes, train, test = _by_wnid(base)
    strange = [name for name in classes if name not in IMAGENETTE]
    if strange:
        raise DataError(
            "these images are not Imagenette",
            where=str(base),
            why=f"none of its classes: {', '.join(strange[:10])}",
            hint="say what they are: --set data.name=imagenet, or image_folder",
        )
    return RawData(tuple(IMAGENETTE[name] for name in classes), train, test)


def _imagenet(settings: TorchvisionSettings, base: Path) -> RawData:
    """Classes are in the order of their WNIDs, as in weights of ImageNet."""
    classes, train, test = _by_wnid(base)
    return RawData(_imagenet_names(base, classes), train, test)


def _by_wnid(base: Path) -> tuple[list[str], RawSplit, RawSplit]:
    """Classes and the images of `train`, and those of `val`, which are the test."""
    classes = inner_folders(base / "train")
    strange = sorted(set(inner_folders(base / "val")) - set(classes))
    if strange:
        raise DataError(
            "the validation images have classes that the training images have not",
            where=str(base / "val"),
            why=f"unknown: {', '.join(strange[:10])}",
            hint="remove these folders, or bring the same classes in train",
        )
    return classes, _split(_labelled(base / "train", classes)), _split(_labelled(base / "val", classes))


def _imagenet_names(base: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first name of each class by the development kit, else its WNID; two "crane"s get theirs behind."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    path = named_by("imagenet", base)
    if path is None:
        return tuple(wnids)

    def fault(why: str) -> DataError:
        return DataError(
            "ImageNet's class names cannot be read",
            where=str(path),
            why=why,
            hint=f"bring {IMAGENET_DEVKIT} again, or remove this file: then WNIDs are the names",
        )

    with reading(fault):
        if path.name == IMAGENET_DEVKIT:
            with tempfile.TemporaryDirectory(prefix="kdpipe-imagenet-") as scratch:
                parse_devkit_archive(scratch, str(path.absolute()))
                known = load_meta_file(scratch)[0]
        else:
            known = load_meta_file(base)[0]
        first = {wnid: known[wnid][0] if wnid in known else wnid for wnid in wnids}
    count = Counter(first.values())
    return tuple(f"{name} ({wnid})" if count[name] > 1 else name for wnid, name in first.items())


def _labelled(folder: Path, classes: Sequence[str]) -> Iterator[Row]:
    """The images of the class folders that are there, by class and name."""
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
