"""The error for a data set that is not there: it names the ways to get it.

Light: imports the standard library alone.
"""

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
"""What each self-made form of a data set looks like on disk."""

_LIKELY = {"npz": "cifar100", "idx": "fashion_mnist", "image_folder": "flowers102"}
"""For each form, a public set that torchvision fetches."""


def missing(settings: Any, why: str, where: str = "", what: str = "is not there") -> DataError:
    """The error that says how to get the set of `settings` (typed, or a namespace alike)."""
    name = settings.name
    others = "".join(f"\n      {text}" for kind, text in LAYOUTS.items() if kind != name)
    if name in LAYOUTS:
        place = f"put it there or say where it lies, as {LAYOUTS[name]}"
        public = _LIKELY[name]
        fetch = (
            "or take a public set that torchvision fetches (needs the network): "
            f"kdpipe run PROFILE --set data.name={public} --set data.root=DIR --set data.download=true"
        )
        bring = f"or bring it in another form with --set data.name=KIND:{others}"
    else:
        place = "say where it lies, if you have it as torchvision stores it"
        fetch = (
            "or let torchvision fetch it (needs the network): "
            "kdpipe run PROFILE --set data.root=DIR --set data.download=true"
        )
        if name == "imagenet":  # its authors give it to registered persons only
            place += ": DIR/train/WNID/*.JPEG and DIR/val/WNID/*.JPEG"
            fetch = (
                "or take ten of its classes, which torchvision fetches (needs the network): "
                "kdpipe run PROFILE --set data.name=imagenette --set data.root=DIR --set data.download=true"
            )
        bring = f"or bring it in a form of your own with --set data.name=KIND --set data.root=DIR:{others}"
    return DataError(
        f"the data set {name} {what}",
        where=where or "data.root",
        why=why,
        hint=(
            f"one of three ways:\n  (1) {place}: kdpipe run PROFILE --set data.root=DIR"
            f"\n  (2) {fetch}\n  (3) {bring}"
        ),
    )


def root_of(settings: Any) -> Path:
    """The set's folder as the user meant it, whether or not it exists. DataError if there is none."""
    if not settings.root:
        raise missing(settings, "data.root is not set")
    try:
        return expand(settings.root)
    except ValueError as error:
        raise missing(settings, f"data.root is {settings.root}, but {error}") from error


def existing_root(settings: Any) -> Path:
    """The set's folder. DataError, naming the ways to get the set, if it is not a folder."""
    root = root_of(settings)
    if not root.is_dir():
        found = "it is a file" if root.exists() else "no such folder"
        raise missing(settings, f"data.root is {settings.root}: {found}", where=str(root))
    return root
