"""Small sets of image files in the layout that their authors publish."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.data.set_names import IMAGENETTE
from stages.data.torchvision.table import SETS
from tests.stages.data.conftest import some_images


@dataclass(frozen=True)
class Published:
    """A set's published form.

    Attributes:
        module: torchvision's module with the set's class.
        write: Writes the files into the folder where torchvision unpacks the archives.
        folder: That folder, relative to the root.
        archives: The files and folders in each archive.
    """

    module: str
    write: Callable[[Path], None]
    folder: str
    archives: dict[str, tuple[str, ...]]

    def pack(self, source: Path, target: Path) -> None:
        """Pack the files that `write` wrote into `source` into the archives in `target`."""
        for name, entries in self.archives.items():
            if name.endswith(".zip"):
                with zipfile.ZipFile(target / name, "w") as packed:
                    for path in (path for entry in entries for path in _files_of(source / entry)):
                        packed.write(path, path.relative_to(source))
            else:
                with tarfile.open(target / name, "w:gz") as tar:
                    for entry in entries:
                        tar.add(source / entry, entry)


def write_image(path: Path, seed: int) -> None:
    """Write a random image of 24x20 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(some_images(1, (20, 24, 3), seed)[0]).save(path)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_pets(folder: Path) -> None:
    """Write a small Oxford-IIIT Pet."""
    breeds = ("Abyssinian", "american_bulldog", "Bengal", "miniature_pinscher")
    for split, numbers in (("trainval", range(6)), ("test", range(6, 8))):
        names = [(f"{breed}_{100 + n}", label) for label, breed in enumerate(breeds, 1) for n in numbers]
        for seed, (name, label) in enumerate(names):
            write_image(folder / "images" / f"{name}.jpg", seed + 100 * len(split) + label)
        lines = (f"{name} {label} {1 + label % 2} {1 + label // 2}" for name, label in reversed(names))
        write_lines(folder / "annotations" / f"{split}.txt", lines)
    write_lines(folder / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    (folder / "images" / "Abyssinian_100.mat").write_bytes(b"no image, as some that are published")


def write_eurosat(folder: Path) -> None:
    """Write a small EuroSAT."""
    for label, name in enumerate(SETS["eurosat"].images):
        for number in range(1, 5):
            write_image(folder / "2750" / name / f"{name}_{number}.jpg", 10 * label + number)


def write_gtsrb(folder: Path) -> None:
    """Write a small GTSRB."""
    for label in range(43):
        for track in range(3):
            for number in range(2):
                name = f"{label:05d}/{track:05d}_{number:05d}.ppm"
                write_image(folder / "GTSRB" / "Training" / name, 100 * label + 10 * track + number)
        write_lines(
            folder / "GTSRB" / "Training" / f"{label:05d}" / f"GT-{label:05d}.csv", ["Filename;Width"]
        )
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, label in enumerate((16, 1, 42, 0)):
        write_image(folder / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", 9000 + number)
        rows.append(f"{number:05d}.ppm;24;20;5;5;19;15;{label}")
    write_lines(folder / "GT-final_test.csv", rows)


def write_dtd(folder: Path) -> None:
    """Write a small DTD."""
    base = folder / "dtd"
    for split in range(1, 11):
        for part, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
            shifted = [(number + split - 1) % 6 for number in numbers]
            lines = [
                f"{name}/{name}_{n:04d}.jpg" for name in ("zigzagged", "banded", "dotted") for n in shifted
            ]
            write_lines(base / "labels" / f"{part}{split}.txt", lines)
    for label, name in enumerate(("banded", "dotted", "zigzagged")):
        for number in range(6):
            write_image(base / "images" / name / f"{name}_{number:04d}.jpg", 10 * label + number)


def write_imagenette(folder: Path) -> None:
    """Write a small Imagenette."""
    for label, wnid in enumerate(IMAGENETTE):
        for part, numbers in (("train", range(3)), ("val", range(2))):
            for number in numbers:
                name = f"imagenette2-160/{part}/{wnid}/{wnid}_{number}.JPEG"
                write_image(folder / name, 100 * label + 10 * len(part) + number)
    write_lines(folder / "imagenette2-160" / "noisy_imagenette.csv", ["path,noisy_labels_0"])


PUBLISHED = {
    "oxford_iiit_pet": Published(
        "oxford_iiit_pet",
        write_pets,
        "oxford-iiit-pet",
        {"images.tar.gz": ("images",), "annotations.tar.gz": ("annotations",)},
    ),
    "eurosat": Published("eurosat", write_eurosat, "eurosat", {"EuroSAT.zip": ("2750",)}),
    "gtsrb": Published(
        "gtsrb",
        write_gtsrb,
        "gtsrb",
        {
            "GTSRB-Training_fixed.zip": ("GTSRB/Training",),
            "GTSRB_Final_Test_Images.zip": ("GTSRB/Final_Test",),
            "GTSRB_Final_Test_GT.zip": ("GT-final_test.csv",),
        },
    ),
    "dtd": Published("dtd", write_dtd, "dtd", {"dtd-r1.0.1.tar.gz": ("dtd",)}),
    "imagenette_160": Published(
        "imagenette", write_imagenette, "", {"imagenette2-160.tgz": ("imagenette2-160",)}
    ),
}


def write_stl10(base: Path, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the binary files into `base`; return the training and test images, uint8 (N, 96, 96, 3)."""
    base.mkdir(parents=True)
    train, test = some_images(len(labels), (96, 96, 3), 1), some_images(20, (96, 96, 3), 2)
    for part, images in (("train", train), ("test", test), ("unlabeled", test[:2])):
        images.transpose(0, 3, 2, 1).tofile(base / f"{part}_X.bin")  # each channel column by column
        if part != "unlabeled":
            (labels[: len(images)] + 1).astype(np.uint8).tofile(base / f"{part}_y.bin")
    write_lines(base / "class_names.txt", STL10_NAMES)
    return train, test


STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _files_of(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]
