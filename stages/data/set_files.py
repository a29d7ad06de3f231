"""The files of a set of digits, IDX or npz files. Imports only the standard library."""

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
"""File names in use by the sets' authors and by mirrors."""


def digits_file() -> Path:
    """Return the path of scikit-learn's own copy of the digits, without importing scikit-learn.

    Raises:
        DataError: scikit-learn is not installed, or the file is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DataError(
        "the digits are missing",
        where="scikit-learn",
        why="its file datasets/data/digits.csv.gz is missing" if spec else "scikit-learn is not installed",
        hint="python -m pip install --force-reinstall scikit-learn",
    )


def idx_files_in(folder: Path) -> dict[str, Path]:
    """Return the IDX files in a folder, of the four possible ones, by role (`train_images`, ...).

    Of a file that exists both plain and compressed, the plain one is returned.
    """
    files: dict[str, Path] = {}
    for role, stems in _IDX_STEMS.items():
        for name in (stem + suffix for stem in stems for suffix in ("", ".gz")):
            path = folder / name
            if role not in files and path.is_file():
                files[role] = path
    return files


def idx_files(settings: Any) -> dict[str, Path]:
    """Return the IDX files of a set by role, with `classes` if classes.txt exists.

    Raises:
        DataError: A training file is missing, or only one of the two test files exists.
    """
    root = existing_root(settings)
    files = idx_files_in(root)
    require_complete_idx(settings, root, files)
    return with_classes(root, files)


def require_complete_idx(settings: Any, folder: Path, files: dict[str, Path]) -> None:
    """Check that both training files exist, and both or none of the test files.

    Raises:
        DataError: A file is missing.
    """
    needed = ["train_images", "train_labels"]
    if "test_images" in files or "test_labels" in files:
        needed += ["test_images", "test_labels"]
    absent = [_IDX_STEMS[role][0] + "[.gz]" for role in needed if role not in files]
    if absent:
        raise missing(settings, f"{', '.join(absent)}: no such file", where=str(folder))


def npz_files(settings: Any) -> dict[str, Path]:
    """Return the npz files of a set by role: `train`, and `test` and `classes` if they exist.

    The root is a folder that contains train.npz, a folder that contains one npz file of any name, or an
    npz file.

    Raises:
        DataError: There is no such file, or several files fit.
    """
    root = root_of(settings)
    if root.suffix == ".npz" and root.is_file():
        if root.name != "train.npz":
            return with_classes(root.parent, {"train": root})
        root = root.parent
    else:
        existing_root(settings)
    files = {role: root / f"{role}.npz" for role in ("train", "test") if (root / f"{role}.npz").is_file()}
    if "train" not in files:
        others = sorted(path for path in root.glob("[!.]*.npz") if path not in files.values())
        if len(others) > 1:
            raise DataError(
                "the choice of the npz file is ambiguous",
                where=str(root),
                why=f"there is no train.npz, but {', '.join(path.name for path in others[:10])}",
                hint=f"name it: --set {shlex.quote(f'data.root={others[0]}')}",
            )
        if not others or files:
            raise missing(settings, "train.npz: no such file", where=str(root))
        files = {"train": others[0]}
    return with_classes(root, files)


def with_classes(root: Path, files: dict[str, Path]) -> dict[str, Path]:
    """Return the files by role, with `classes` added if classes.txt exists in `root`."""
    path = root / CLASSES_FILE
    return {**files, "classes": path} if path.is_file() else files
