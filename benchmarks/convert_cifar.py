"""Convert CIFAR, packed as WebP strips, to the npz format that kdpipe reads.

    python benchmarks/convert_cifar.py SOURCE TARGET
    python benchmarks/convert_cifar.py SOURCE TARGET --parts 1 --test-images 4000
    kdpipe run profiles/cifar100_resnet_to_mobilenet.yaml --set data.name=npz --set data.root=TARGET

SOURCE contains `train_0.npz`, `train_1.npz`, ... and `test.npz`. It may contain `classes.txt` (one class name
a line, in label order). Each npz file has

    s000, s001, ...   one strip each: the bytes of a lossless WebP image with square RGB images of equal size,
                      one below the other (a strip is as wide as an image)
    labels            whole numbers, one an image, in the order of the strips

Other arrays are ignored. The program writes `train.npz` (all parts, in order) and `test.npz` to TARGET, each
with uint8 `images` (N,H,W,3) and int64 `labels` (N), and copies `classes.txt`. It prints the exact sum of
each channel, which you can compare with published sums. `--parts` uses only the first parts. `--test-images`
uses only that many test images: the same number for each class, spread evenly over its images, and the same
images at every call.
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


class FormatError(Exception):
    """A file does not have the format that the program describes."""


def read_strips(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file.

    Returns:
        images uint8 (N,H,W,3) and labels int64 (N,).

    Raises:
        FormatError: the file does not have the format.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: damaged, or not an npz file: {error}") from error
    with archive:
        names = sorted(name for name in archive.files if name[:1] == "s" and name[1:].isdigit())
        if not names or "labels" not in archive.files:
            raise FormatError(f"{path}: no strips s000, s001, ... or no labels in it")
        labels = archive["labels"].astype(np.int64)
        strips = []
        for name in names:
            with Image.open(io.BytesIO(archive[name].tobytes())) as image:
                strip = np.asarray(image.convert("RGB"))
            if strip.shape[0] % strip.shape[1]:
                raise FormatError(
                    f"{path}: strip {name} is {strip.shape[1]}x{strip.shape[0]}, not squares in a row"
                )
            strips.append(strip.reshape(-1, strip.shape[1], strip.shape[1], 3))
    images = np.concatenate(strips)
    if len(images) != len(labels):
        raise FormatError(f"{path}: {len(images)} images but {len(labels)} labels")
    return images, labels


def spread_evenly(labels: np.ndarray, count: int) -> np.ndarray:
    """Select `count` images: the same number of each class, spread evenly over its images.

    Returns:
        the indices, ascending.

    Raises:
        FormatError: the classes do not have enough images, or `count` is not a multiple of the classes.
    """
    classes = np.unique(labels)
    each, rest = divmod(count, len(classes))
    indices = [np.flatnonzero(labels == label) for label in classes]
    fewest = min(len(of_class) for of_class in indices)
    if rest or not 0 < each <= fewest:
        raise FormatError(
            f"cannot select {count} test images: use a multiple of the number of classes ({len(classes)}), "
            f"at most {fewest * len(classes)}"
        )
    return np.sort(
        np.concatenate([of_class[np.arange(each) * len(of_class) // each] for of_class in indices])
    )


def convert(source: Path, target: Path, *, most_parts: int | None = None, tests: int | None = None) -> None:
    """Write TARGET and print a line for each split.

    Args:
        source: the folder SOURCE.
        target: the folder TARGET.
        most_parts: number of training files; None: all.
        tests: number of test images; None: all.

    Raises:
        FormatError: a file is missing or does not have the format.
        OSError: a file cannot be read or written.
    """
    if source.resolve() == target.resolve():
        raise FormatError(
            f"{target}: SOURCE and TARGET are the same folder, so test.npz would be overwritten"
        )
    parts = {
        "train": sorted(source.glob("train_*.npz"))[:most_parts],
        "test": sorted(source.glob("test.npz")),
    }
    for split, paths in parts.items():
        if not paths:
            raise FormatError(f"{source}: no {'train_*.npz' if split == 'train' else 'test.npz'} in it")
    target.mkdir(parents=True, exist_ok=True)
    for split, paths in parts.items():
        read = [read_strips(path) for path in paths]
        images = np.concatenate([images for images, _ in read])
        labels = np.concatenate([labels for _, labels in read])
        if split == "test" and tests is not None:
            selected = spread_evenly(labels, tests)
            images, labels = images[selected], labels[selected]
        # Write to a temporary name and rename: an interrupted run leaves no incomplete file.
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
    parser.add_argument("--parts", type=int, metavar="N", help="use only the first N training files")
    parser.add_argument(
        "--test-images", type=int, metavar="N", help="use only N test images, evenly selected"
    )
    options = parser.parse_args()
    if options.parts is not None and options.parts < 1:
        parser.error("--parts must be at least 1")
    try:
        convert(options.source, options.target, most_parts=options.parts, tests=options.test_images)
    except (FormatError, OSError, ValueError) as error:
        print(f"convert_cifar: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
