"""Which files make up a set of digits, IDX or npz files. Light: the standard library alone."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from stages.data.missing import existing_root, missing, root_of

CLASSES_FILE = "classes.txt"

_IDX_STEMS = {
    "train_images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_images": (
        "t10k-images-idx3-ubyte",
        "t10k-images.idx3-ubyte",
        "test-images-idx3-ubyte",
        "test-images.idx3-ubyte",
    ),
    "test_labels": (
        "t10k-labels-idx1-ubyte",
        "t10k-labels.idx1-ubyte",
        "test-labels-idx1-ubyte",
        "test-labels.idx1-ubyte",
    ),
}
"""Names as the sets' authors and their mirrors write them."""


def digits_file() -> Path:
    """scikit-learn's own copy of the digits, found without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DataError(
        "the digits are not there",
        where="scikit-learn",
        why="its file datasets/data/digits.csv.gz is missing" if spec else "scikit-learn is not installed",
        hint="python -m pip install --force-reinstall scikit-learn",
    )


def idx_files_in(folder: Path) -> dict[str, Path]:
    """Those of the four IDX files that lie in `folder`, by role (`train_images`, ...); a file
    that is there both plain and compressed counts once, plain."""
    found: dict[str, Path] = {}
    for role, stems in _IDX_STEMS.items():
        for name in (stem + suffix for stem in stems for suffix in ("", ".gz")):
            path = folder / name
            if role not in found and path.is_file():
                found[role] = path
    return found


def idx_files(settings: Any) -> dict[str, Path]:
    """The IDX files of a set by role, `classes` among them if classes.txt is there.

    Raises DataError if a training file is missing, or one of the two test files without the other.
    """
    root = existing_root(settings)
    found = idx_files_in(root)
    complete_idx(settings, root, found)
    return with_classes(root, found)


def complete_idx(settings: Any, folder: Path, found: dict[str, Path]) -> None:
    """Raises DataError unless both training files are there and both or none of the test files."""
    needed = ["train_images", "train_labels"]
    if "test_images" in found or "test_labels" in found:
        needed += ["test_images", "test_labels"]
    absent = [_IDX_STEMS[role][0] + "[.gz]" for role in needed if role not in found]
    if absent:
        raise missing(settings, f"{', '.join(absent)}: no such file", where=str(folder))


def npz_files(settings: Any) -> dict[str, Path]:
    """`train`, and `test` and `classes` if they are there.

    The root is a folder with train.npz, or with one npz file of any name, or that file itself. Raises
    DataError if there is no such file, or several that it could be.
    """
    root = root_of(settings)
    if root.suffix == ".npz" and root.is_file():
        if root.name != "train.npz":
            return with_classes(root.parent, {"train": root})
        root = root.parent
    else:
        existing_root(settings)
    found = {role: root / f"{role}.npz" for role in ("train", "test") if (root / f"{role}.npz").is_file()}
    if "train" not in found:
        others = sorted(path for path in root.glob("[!.]*.npz") if path not in found.values())
        if len(others) > 1:
            raise DataError(
                "it is not clear which npz file is meant",
                where=str(root),
                why=f"there is no train.npz, but {', '.join(path.name for path in others[:10])}",
                hint=f"name it: --set {shlex.quote(f'data.root={others[0]}')}",
            )
        if not others or found:
            raise missing(settings, "train.npz: no such file", where=str(root))
        found = {"train": others[0]}
    return with_classes(root, found)


def with_classes(root: Path, found: dict[str, Path]) -> dict[str, Path]:
    path = root / CLASSES_FILE
    return {**found, "classes": path} if path.is_file() else found
