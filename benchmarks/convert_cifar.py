"""Brings CIFAR, packed as WebP strips, into the npz form that kdpipe reads.

    python benchmarks/convert_cifar.py SOURCE TARGET
    python benchmarks/convert_cifar.py SOURCE TARGET --parts 1 --test-images 4000
    kdpipe run profiles/cifar100_resnet_to_mobilenet.yaml --set data.name=npz --set data.root=TARGET

SOURCE holds `train_0.npz`, `train_1.npz`, ... and `test.npz`, and may hold `classes.txt` (one class name a
line, in label order). Each npz file has

    s000, s001, ...   one strip each: the bytes of a lossless WebP image, in which square RGB images of equal
                      size lie one below the other (a strip is as wide as an image)
    labels            whole numbers, one an image, in the order of the strips

and may have more, which is passed over. TARGET gets `train.npz` (all parts, in order) and `test.npz`, each
with uint8 `images` (N,H,W,3) and int64 `labels` (N), and a copy of `classes.txt`. The exact sum of each
channel is printed, to be compared with a published one. `--parts` takes the first parts alone,
`--test-images` so many of the test images: equally many of each class, spread evenly over its images, the
same ones at every call.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


class Misfit(Exception):  # noqa: N818 - told to the user, not handled
    """A file that is not of the form that the program's text tells."""


def read_strips(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N,H,W,3) and labels int64 (N,) of one file. Raises Misfit."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise Misfit(f"{path}: damaged, or no npz file: {error}") from error
    with archive:
        names = sorted(name for name in archive.files if name[:1] == "s" and name[1:].isdigit())
        if not names or "labels" not in archive.files:
            raise Misfit(f"{path}: no strips s000, s001, ... or no labels in it")
        labels = archive["labels"].astype(np.int64)
        strips = []
        for name in names:
            with Image.open(io.BytesIO(archive[name].tobytes())) as image:
                strip = np.asarray(image.convert("RGB"))
            if strip.shape[0] % strip.shape[1]:
                raise Misfit(
                    f"{path}: strip {name} is {strip.shape[1]}x{strip.shape[0]}, not squares in a row"
                )
            strips.append(strip.reshape(-1, strip.shape[1], strip.shape[1], 3))
    images = np.concatenate(strips)
    if len(images) != len(labels):
        raise Misfit(f"{path}: {len(images)} images but {len(labels)} labels")
    return images, labels


def spread_evenly(labels: np.ndarray, count: int) -> np.ndarray:
    """Places, ascending, of `count` images: equally many of each class, evenly over the places of each.

    Raises Misfit if the classes cannot give equally many.
    """
    classes = np.unique(labels)
    each, rest = divmod(count, len(classes))
    places = [np.flatnonzero(labels == label) for label in classes]
    fewest = min(len(of_class) for of_class in places)
    if rest or not 0 < each <= fewest:
        raise Misfit(
            f"{count} test images cannot be drawn: it must be a multiple of the {len(classes)} classes, "
            f"and at most {fewest * len(classes)}"
        )
    return np.sort(np.concatenate([of_class[np.arange(each) * len(of_class) // each] for of_class in places]))


def convert(source: Path, target: Path, *, most_parts: int | None = None, tests: int | None = None) -> None:
    """Writes TARGET; prints one line a split. None: all of them. Raises Misfit, OSError."""
    if source.resolve() == target.resolve():
        raise Misfit(f"{target}: SOURCE and TARGET are the same folder, so test.npz would be overwritten")
    parts = {
        "train": sorted(source.glob("train_*.npz"))[:most_parts],
        "test": sorted(source.glob("test.npz")),
    }
    for split, paths in parts.items():
        if not paths:
            raise Misfit(f"{source}: no {'train_*.npz' if split == 'train' else 'test.npz'} in it")
    target.mkdir(parents=True, exist_ok=True)
    for split, paths in parts.items():
        read = [read_strips(path) for path in paths]
        images = np.concatenate([images for images, _ in read])
        labels = np.concatenate([labels for _, labels in read])
        if split == "test" and tests is not None:
            drawn = spread_evenly(labels, tests)
            images, labels = images[drawn], labels[drawn]
        # Written beside its place and moved there when whole: an interrupted run leaves no half file.
        scratch = target / f".{split}.npz"
        with scratch.open("wb") as stream:
            np.savez_compressed(stream, images=images, labels=labels)
        scratch.replace(target / f"{split}.npz")
        sums = ", ".join(str(images[..., channel].sum(dtype=np.int64)) for channel in range(3))
        print(f"{split}: {len(images)} images, {len(np.unique(labels))} classes, sum R, G, B: {sums}")
    if (source / "classes.txt").is_file():
        shutil.copyfile(source / "classes.txt", target / "classes.txt")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with train_*.npz and test.npz")
    parser.add_argument("target", type=Path, help="folder to write train.npz, test.npz and classes.txt to")
    parser.add_argument("--parts", type=int, metavar="N", help="the first N training files alone")
    parser.add_argument(
        "--test-images", type=int, metavar="N", help="so many of the test images, evenly drawn"
    )
    options = parser.parse_args()
    if options.parts is not None and options.parts < 1:
        parser.error("--parts must be at least 1")
    try:
        convert(options.source, options.target, most_parts=options.parts, tests=options.test_images)
    except (Misfit, OSError, ValueError) as error:
        print(f"convert_cifar: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
