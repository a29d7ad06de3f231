"""torchvision's sets of image files and STL-10: equal to what torchvision's classes read, and downloads."""

import importlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint, official_fingerprint
from stages.data.load import check, load
from stages.data.raw import RawSplit
from stages.data.set_names import GTSRB, IMAGENETTE
from stages.data.torchvision import sets as torchvision_sets
from stages.data.torchvision.table import SETS
from tests.errors import raises
from tests.stages.data.conftest import all_pixels, digest, md5, paths_of, settings
from tests.stages.data.published import PUBLISHED, STL10_NAMES, write_stl10

TORCHVISIONS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "oxford_iiit_pet": (datasets.OxfordIIITPet, {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "eurosat": (datasets.EuroSAT, {"train": {}}),
    "gtsrb": (datasets.GTSRB, {"train": {"split": "train"}, "test": {"split": "test"}}),
    "dtd": (
        datasets.DTD,
        {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}},
    ),
    "imagenette_160": (
        datasets.Imagenette,
        {"train": {"split": "train", "size": "160px"}, "test": {"split": "val", "size": "160px"}},
    ),
}
"""torchvision's classes, and their arguments for each split."""


def written(name: str, root: Path) -> Path:
    PUBLISHED[name].write(root / PUBLISHED[name].folder)
    return root


def rows_of(part: RawSplit) -> Counter[tuple[bytes, int]]:
    """Count how often each picture occurs with each label."""
    pictures = [np.asarray(Image.open(path).convert("RGB")).tobytes() for path in paths_of(part)]
    return Counter(zip(pictures, part.labels.tolist(), strict=True))


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_pictures_labels_and_splits_are_those_of_torchvisions_class(tmp_path: Path, name: str) -> None:
    raw = torchvision_sets.read(settings(name, written(name, tmp_path)))
    known, splits = TORCHVISIONS[name]
    parts = raw.parts()
    if name == "gtsrb":  # torchvision has no validation split: we take tracks out of training
        whole = [*paths_of(raw.train), *paths_of(parts.pop("validation"))]
        parts["train"] = RawSplit(whole, np.asarray([int(path.parent.name) for path in whole]))
    assert parts.keys() == splits.keys()
    for split, options in splits.items():
        theirs = known(str(tmp_path), **options)
        expected = Counter((np.asarray(image).tobytes(), label) for image, label in theirs)
        assert rows_of(parts[split]) == expected
    if name == "imagenette_160":
        assert {wnid: names[0] for wnid, names in known._WNID_TO_CLASS.items()} == IMAGENETTE
        assert raw.classes == tuple(names[0] for names in theirs.classes)
    elif name != "gtsrb":
        assert raw.classes == tuple(theirs.classes)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_a_set_is_checked_loaded_and_found_at_every_depth(tmp_path: Path, name: str) -> None:
    written(name, tmp_path)
    check(settings(name, tmp_path))
    before = fingerprint(settings(name, tmp_path), digest)
    data = load(settings(name, tmp_path))
    steps = Path(SETS[name].folder).parts
    for depth in range(1, len(steps) + 1):
        deeper = tmp_path.joinpath(*steps[:depth])
        assert np.array_equal(all_pixels(load(settings(name, deeper)).test), all_pixels(data.test))
        assert fingerprint(settings(name, deeper), digest) == before
    picture = (
        sorted(tmp_path.rglob("*.jpg")) + sorted(tmp_path.rglob("*.JPEG")) + sorted(tmp_path.rglob("*.ppm"))
    )
    picture[0].write_bytes(picture[1].read_bytes())
    assert fingerprint(settings(name, tmp_path), digest) != before


def test_validation_of_gtsrb_takes_whole_tracks_of_every_class(tmp_path: Path) -> None:
    written("gtsrb", tmp_path)
    raw = torchvision_sets.read(settings("gtsrb", tmp_path, validation=0.3))
    assert raw.classes == GTSRB
    assert len(set(GTSRB)) == 43
    assert raw.validation is not None

    def tracks(part: RawSplit) -> set[tuple[str, str]]:
        return {(path.parent.name, path.name.partition("_")[0]) for path in paths_of(part)}

    assert not tracks(raw.train) & tracks(raw.validation)
    assert set(raw.validation.labels.tolist()) == set(range(43))
    assert len(raw.validation) == 2 * len(tracks(raw.validation))
    assert len(raw.train) + len(raw.validation) == 43 * 6
    other = torchvision_sets.read(settings("gtsrb", tmp_path, validation=0.3, split_seed=1))
    assert other.validation is not None
    assert tracks(other.validation) != tracks(raw.validation)


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [
        ("oxford_iiit_pet", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_106 1 1\n"),
        ("gtsrb", "gtsrb/GT-final_test.csv", "Filename,ClassId\n00000.ppm,3\n"),
        ("dtd", "dtd/dtd/labels/val1.txt", "plaid/plaid_0001.jpg\n"),
    ],
)
def test_damaged_lists_are_reported(tmp_path: Path, name: str, path: str, content: str) -> None:
    (written(name, tmp_path) / path).write_text(content)
    with raises(DataError, what="damaged") as caught:
        check(settings(name, tmp_path))
    assert "download=true" in caught.value.hint


def test_a_picture_that_a_list_names_must_be_there(tmp_path: Path) -> None:
    (written("dtd", tmp_path) / "dtd" / "dtd" / "images" / "banded" / "banded_0003.jpg").unlink()
    with raises(DataError, why="no such file"):
        check(settings("dtd", tmp_path))


def test_other_folders_are_not_taken_for_imagenette(tmp_path: Path) -> None:
    written("imagenette_160", tmp_path)
    for part in ("train", "val"):
        folder = tmp_path / "imagenette2-160" / part
        shutil.copytree(folder / "n01440764", folder / "n00000001")
    with raises(DataError, what="not Imagenette") as caught:
        check(settings("imagenette_160", tmp_path))
    assert "n00000001" in caught.value.why


def official_stl10(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train_list", "test_list"):
        files = [[name, md5(base / name)] for name, _ in getattr(datasets.STL10, part)]
        monkeypatch.setattr(datasets.STL10, part, files)


def test_stl10_needs_no_unlabelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.tile(np.arange(10), 4)
    train, test = write_stl10(tmp_path / "stl10_binary", labels)
    official_stl10(tmp_path / "stl10_binary", monkeypatch)
    theirs = datasets.STL10(str(tmp_path), split="test")
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    raw = torchvision_sets.read(settings("stl10", tmp_path))
    assert raw.classes == STL10_NAMES
    assert np.array_equal(np.asarray(raw.train.images), train)
    assert np.array_equal(raw.train.labels, labels)
    assert raw.test is not None
    assert np.array_equal(np.asarray(raw.test.images), test)
    assert np.array_equal(test, [np.asarray(image) for image, _ in theirs])
    assert len(load(settings("stl10", tmp_path / "stl10_binary")).test) == 20
    (tmp_path / "stl10_binary" / "test_y.bin").write_bytes(b"\1" * 20)
    with raises(DataError, what="damaged") as caught:
        check(settings("stl10", tmp_path))
    assert "not the official" in caught.value.why


@pytest.mark.parametrize("name", [*PUBLISHED, "stl10"])
def test_a_download_is_torchvisions_of_the_official_archives(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    address, served = server
    source = tmp_path / "source"
    if name == "stl10":
        write_stl10(source / "stl10_binary", np.tile(np.arange(10), 4))
        official_stl10(source / "stl10_binary", monkeypatch)
        archive = shutil.make_archive(str(served / "stl10_binary"), "gztar", source, "stl10_binary")
        assert Path(archive).name == "stl10_binary.tar.gz"
        module = importlib.import_module("torchvision.datasets.stl10")
    else:
        PUBLISHED[name].write(source)
        PUBLISHED[name].pack(source, served)
        module = importlib.import_module(f"torchvision.datasets.{PUBLISHED[name].module}")
    fetched: list[tuple[str, str]] = []
    real = module.download_and_extract_archive

    def fetch_small(url: str, *arguments: Any, **more: Any) -> None:
        """Call torchvision's function with the small archive and its checksum."""
        file = Path(url).name
        fetched.append((file, more["md5"]))
        real(address + file, *arguments, **{**more, "md5": md5(served / file)})

    monkeypatch.setattr(module, "download_and_extract_archive", fetch_small)
    root = tmp_path / "new" / "root"
    downloading = settings(name, root, download=True)
    check(downloading)
    assert fingerprint(downloading, digest) == official_fingerprint(name)
    assert not root.exists()
    assert len(load(downloading).classes) > 2
    assert sorted(fetched) == sorted(SETS[name].official)
    assert fingerprint(settings(name, root), digest) == official_fingerprint(name)
    assert (root / SETS[name].folder).is_dir()
    check(settings(name, root))
