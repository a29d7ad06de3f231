"""The error for a missing data set, with the ways to get it. Imports only the standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.paths import expand

LAYOUTS = {
    "npz": (
        "npz: DIR/train.npz and DIR/test.npz, each with uint8 `images` (N,H,W[,3]) and `labels` (N), "
        "or one file with `x_train`, `y_train`, ... or `train_images`, `train_labels`, ..."
    ),
    "idx": (
        "idx: DIR/train-images-idx3-ubyte.gz, DIR/train-labels-idx1-ubyte.gz and the same two "
        "with t10k for train"
    ),
    "image_folder": (
        "image_folder: DIR/train/CLASS/*.png (or .jpg, ...) and DIR/test/CLASS/*.png, or DIR/CLASS/*.png"
    ),
}
"""The files of each format in which users provide own data sets."""

_PUBLIC_SETS = {"npz": "cifar100", "idx": "fashion_mnist", "image_folder": "flowers102"}
"""For each format, a public set that torchvision fetches."""


def missing(settings: Any, why: str, where: str = "", what: str = "is missing") -> DataError:
    """Return the error for a missing set, with the ways to get it in its hint.

    Args:
        settings: Typed `DataSettings`, or a namespace with the same attributes.
        why: The reason.
        where: The file, folder or key; default: `data.root`.
        what: The predicate of the message, after "the data set NAME".
    """
    name = settings.name
    others = "".join(f"\n      {text}" for kind, text in LAYOUTS.items() if kind != name)
    if name in LAYOUTS:
        place = f"put it there, or set its folder, in the layout {LAYOUTS[name]}"
        public = _PUBLIC_SETS[name]
        fetch = (
            "or use a public set that torchvision fetches (needs the network): "
            f"kdpipe run PROFILE --set data.name={public} --set data.root=DIR --set data.download=true"
        )
        convert = f"or convert it to another format, with --set data.name=KIND:{others}"
    else:
        place = "set its folder, if you have the set in torchvision's layout"
        fetch = (
            "or let torchvision fetch it (needs the network): "
            "kdpipe run PROFILE --set data.root=DIR --set data.download=true"
        )
        if name == "imagenet":  # its authors give it only to registered persons
            place += ": DIR/train/WNID/*.JPEG and DIR/val/WNID/*.JPEG"
            fetch = (
                "or use ten of its classes, which torchvision fetches (needs the network): "
                "kdpipe run PROFILE --set data.name=imagenette --set data.root=DIR --set data.download=true"
            )
        convert = "or convert it to another format, with --set data.name=KIND --set data.root=DIR:" + others
    return DataError(
        f"the data set {name} {what}",
        where=where or "data.root",
        why=why,
        hint=(
            f"one of three ways:\n  (1) {place}: kdpipe run PROFILE --set data.root=DIR"
            f"\n  (2) {fetch}\n  (3) {convert}"
        ),
    )


def root_of(settings: Any) -> Path:
    """Return the set's expanded folder, even if it does not exist.

    Raises:
        DataError: `data.root` is not set or cannot be expanded.
    """
    if not settings.root:
        raise missing(settings, "data.root is not set")
    try:
        return expand(settings.root)
    except ValueError as error:
        raise missing(settings, f"data.root is {settings.root}, but {error}") from error


def existing_root(settings: Any) -> Path:
    """Return the set's folder.

    Raises:
        DataError: It is not a folder; the hint lists the ways to get the set.
    """
    root = root_of(settings)
    if not root.is_dir():
        fault = "it is a file" if root.exists() else "no such folder"
        raise missing(settings, f"data.root is {settings.root}: {fault}", where=str(root))
    return root
