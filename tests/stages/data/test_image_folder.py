import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from stages.data import load as loading
from stages.data.load import check, load
from stages.data.settings import ImageFolderSettings
from tests.errors import raises
from tests.stages.data.conftest import MakeFolder, all_pixels


def folder(root: Path, **more: Any) -> ImageFolderSettings:
    return ImageFolderSettings(name="image_folder", root=str(root), **{"image_size": 16, **more})


def test_class_folders_alone_are_cut_into_three_splits(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"dog": 20, "cat": 10})
    data = load(folder(tmp_path, test=0.2, validation=0.25))
    assert data.classes == ("cat", "dog")
    assert [np.bincount(part.labels).tolist() for part in (data.test, data.validation, data.train)] == [
        [2, 4],
        [2, 4],
        [6, 12],
    ]
    pixels = [
        image.tobytes() for part in (data.train, data.validation, data.test) for image in all_pixels(part)
    ]
    assert len(set(pixels)) == 30


@pytest.mark.parametrize("name", ["test", "val", "valid"])
def test_one_held_out_folder_is_the_test_split(tmp_path: Path, make_folder: MakeFolder, name: str) -> None:
    make_folder(tmp_path / "train", {"a": 6, "b": 6})
    make_folder(tmp_path / name, {"a": 2, "b": 3}, seed=9)
    data = load(folder(tmp_path))
    assert data.test.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(data.train) + len(data.validation) == 12


def test_beside_test_val_is_the_validation_split(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", {"a": 1, "b": 1})
    make_folder(tmp_path / "val", {"a": 3, "b": 1}, seed=8)
    make_folder(tmp_path / "test", {"a": 2, "b": 2}, seed=9)
    data = load(folder(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 4, 4)


def test_a_class_may_be_called_train(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"train": 5, "car": 5, "test": 5})
    assert load(folder(tmp_path)).classes == ("car", "test", "train")


def test_suffixes_of_any_case_count_and_hidden_or_other_files_do_not(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    make_folder(tmp_path, {"a": 4, "b": 4})
    image = Image.new("RGB", (20, 20), (9, 9, 9))
    for suffix in ("JPG", "JPEG", "bmp", "WebP", "ppm", "tif", "TIFF"):
        image.save(tmp_path / "a" / f"more.{suffix}")
    image.convert("L").save(tmp_path / "a" / "more.pgm")
    image.save(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "a" / "inner").mkdir()
    data = load(folder(tmp_path))
    assert np.bincount(
        np.concatenate([data.train.labels, data.validation.labels, data.test.labels])
    ).tolist() == [
        12,
        4,
    ]
    assert any("were ignored" in note for note in data.notes)


def test_the_split_does_not_depend_on_the_order_or_the_folder_of_files(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    first = make_folder(tmp_path / "one", {"a": 10, "b": 10})
    second = tmp_path / "elsewhere" / "two"
    for path in sorted(first.rglob("*.png"), reverse=True):
        (second / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, second / path.parent.name / path.name)
    for part in ("train", "validation", "test"):
        left, right = (getattr(load(folder(root)), part) for root in (first, second))
        assert np.array_equal(all_pixels(left), all_pixels(right))
        assert np.array_equal(left.labels, right.labels)


def test_a_set_on_disk_equals_the_set_in_memory(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 8, "b": 8}, suffix=".jpg")
    cached = load(folder(tmp_path))
    read = load(folder(tmp_path, memory_limit_gb=1e-9, workers=3))
    assert cached.preprocessing == read.preprocessing
    for part in ("train", "validation", "test"):
        assert np.array_equal(all_pixels(getattr(cached, part)), all_pixels(getattr(read, part)))


def test_a_grey_set_has_one_channel_and_a_mixed_one_three(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 4, "b": 4}, mode="L")
    assert load(folder(tmp_path)).preprocessing.channels == 1
    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "b" / "z.png")
    assert load(folder(tmp_path)).preprocessing.channels == 3
    assert load(folder(tmp_path, channels=1)).train.images.shape == (16, 16, 1)


def test_test_images_seen_in_training_are_reported(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", {"a": 6, "b": 6})
    make_folder(tmp_path / "test", {"a": 2, "b": 2}, seed=9)
    assert load(folder(tmp_path)).notes == ()
    shutil.copyfile(tmp_path / "train" / "a" / "image003.png", tmp_path / "test" / "b" / "again.png")
    (note,) = load(folder(tmp_path)).notes
    assert note.startswith("1 of 5 test images")


def test_a_class_without_test_images_is_fine_and_reported(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", {"a": 4, "b": 4, "c": 4})
    make_folder(tmp_path / "test", {"a": 2, "b": 2}, seed=9)
    data = load(folder(tmp_path))
    assert data.classes == ("a", "b", "c")
    assert data.notes == ("the test split has no image of 1 classes: c",)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ({}, "no class folders"),
        ({"a": 0, "b": 0}, "none of its 2 class folders"),
        ({"a": 5, "b": 0}, "b: no file ending in"),
        ({"a": 5}, "the only class folder is a"),
        ({"a": 5, "b": 2}, "b (2); 3 are needed"),
        ({"train/a": 5, "train/b": 5, "test/a": 1, "test/c": 1}, "unknown: c"),
        ({"train/a": 5, "train/b": 1, "test/a": 1}, "b (1); 2 are needed"),
        ({"train/a": 5, "train/b": 5, "test/a": 0}, "no class folder contains an image"),
        ({"train/a": 5, "train/b": 5, "val/a": 1, "valid/a": 1}, "val and valid"),
    ],
)
def test_unusable_folders_are_reported(
    tmp_path: Path, make_folder: MakeFolder, classes: dict[str, int], reason: str
) -> None:
    make_folder(tmp_path, classes)
    for use in (check, load):
        with pytest.raises(DataError) as caught:
            use(folder(tmp_path))
        assert reason in caught.value.why
        assert caught.value.hint
        assert caught.value.where


def test_check_decodes_every_image_and_names_the_bad_one(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 5, "b": 5}, suffix=".jpg")
    check(folder(tmp_path))
    bad = tmp_path / "b" / "image004.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        check(folder(tmp_path))
    assert str(bad) == caught.value.where
    assert "truncated" in caught.value.why
    assert "1 image cannot be read" in caught.value.what


def test_of_a_large_folder_every_header_is_read(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "FULL_CHECK_LIMIT", 19)
    monkeypatch.setattr(loading, "_CHECK_SAMPLE_SIZE", 5)  # every fourth of the 20 is decoded
    make_folder(tmp_path, {"a": 10, "b": 10})
    image = tmp_path / "a" / "image001.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-40])
    check(folder(tmp_path))
    image.write_bytes(b"")
    with raises(DataError, what="cannot be read"):
        check(folder(tmp_path))
    image.write_bytes(whole)
    decoded = tmp_path / "a" / "image004.png"
    decoded.write_bytes(decoded.read_bytes()[:-40])
    with raises(DataError, what="cannot be read"):
        check(folder(tmp_path))


def test_mean_and_std_are_cached_for_as_long_as_the_files_stay(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    make_folder(tmp_path, {"a": 5, "b": 5})
    before = load(folder(tmp_path)).preprocessing
    assert load(folder(tmp_path)).preprocessing == before
    for path in tmp_path.rglob("*.png"):
        Image.open(path).point(lambda value: value // 2).save(path)
    assert load(folder(tmp_path)).preprocessing.mean[0] < before.mean[0]


def test_a_channel_without_contrast_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16), (10 * number, 7, 3 * number)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError) as caught:
        load(folder(tmp_path))
    assert "channel 1 is 7" in caught.value.why
    given = load(folder(tmp_path, mean=[0.5] * 3, std=[0.5] * 3))
    assert given.preprocessing.std == (0.5, 0.5, 0.5)


def test_constants_that_do_not_fit_the_channels_are_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 4, "b": 4})
    with raises(DataError, why="1 values, the images 3 channels"):
        check(folder(tmp_path, mean=[0.5], std=[0.5]))
