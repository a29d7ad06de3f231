from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint
from stages.data.load import check, load
from stages.data.settings import NpzSettings
from tests.errors import raises
from tests.stages.data.conftest import all_pixels, digest, some_images

LABELS = np.tile(np.arange(3), 10)


def write(root: Path, **arrays: Any) -> NpzSettings:
    np.savez_compressed(
        root / "train.npz", **{"images": some_images(30, (8, 8, 3)), "labels": LABELS, **arrays}
    )
    return NpzSettings(name="npz", root=str(root), image_size=8)


def test_the_loaded_images_are_the_written_ones(tmp_path: Path) -> None:
    settings = write(tmp_path)
    np.savez(
        tmp_path / "test.npz", images=some_images(9, (8, 8, 3), seed=5), labels=LABELS[:9].astype(np.uint8)
    )
    data = load(settings)
    assert np.array_equal(all_pixels(data.test), some_images(9, (8, 8, 3), seed=5))
    assert data.test.labels.dtype == np.int64
    every = np.concatenate([all_pixels(data.train), all_pixels(data.validation)])
    original = some_images(30, (8, 8, 3))
    assert sorted(image.tobytes() for image in every) == sorted(image.tobytes() for image in original)


def test_grey_images_need_no_channel_axis(tmp_path: Path) -> None:
    data = load(write(tmp_path, images=some_images(30, (8, 8))))
    assert data.train.images.shape == (8, 8, 1)
    tripled = load(NpzSettings(name="npz", root=str(tmp_path), image_size=8, channels=3))
    assert np.array_equal(all_pixels(tripled.train), np.repeat(all_pixels(data.train), 3, axis=3))


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": some_images(30, (8, 8, 3)).astype(np.float32)}, "float32"),
        ({"images": some_images(30, (8, 8, 4))}, "(30, 8, 8, 4)"),
        ({"images": some_images(29, (8, 8, 3))}, "29 images but 30 labels"),
        ({"images": np.array([Dangerous()], dtype=object)}, "allow_pickle"),
        ({"labels": LABELS.astype(np.float64)}, "float64"),
        ({"labels": LABELS[:, None]}, "(30, 1)"),
        ({"labels": LABELS - 1}, "-1"),
        ({"labels": LABELS * 2}, "1 (0)"),
        ({"labels": np.zeros(30, int)}, "a classifier needs at least two classes"),
        ({"labels": np.array([2] * 2 + [0, 1] * 14)}, "2 (2)"),
    ],
)
def test_what_does_not_fit_is_reported(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        check(write(tmp_path, **arrays))
    assert reason in caught.value.why
    assert caught.value.hint


def test_a_missing_array_and_a_cut_file_are_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=LABELS)
    settings = NpzSettings(name="npz", root=str(tmp_path))
    with pytest.raises(DataError) as caught:
        check(settings)
    assert "no images and no labels, but x" in caught.value.why
    write(tmp_path)
    (tmp_path / "train.npz").write_bytes((tmp_path / "train.npz").read_bytes()[:900])
    with pytest.raises(DataError) as caught:
        check(settings)
    assert caught.value.where == str(tmp_path / "train.npz")


def test_classes_that_share_a_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with raises(DataError, what="same name"):
        load(NpzSettings(name="npz", root=str(tmp_path), classes=["a", "b", "a"]))


def arrays(convention: str, *, column: bool) -> dict[str, np.ndarray]:
    """Return train, validation and test of 30, 6 and 9 images for one file; `column`: labels (N, 1)."""
    content = {}
    for seed, (part, count) in enumerate((("train", 30), ("val", 6), ("test", 9))):
        labels = LABELS[:count].astype(np.uint8)
        names = (f"x_{part}", f"y_{part}") if convention == "keras" else (f"{part}_images", f"{part}_labels")
        content[names[0]] = some_images(count, (8, 8, 3), seed)
        content[names[1]] = labels[:, None] if column else labels
    return content


@pytest.mark.parametrize("convention", ["keras", "medmnist"])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("file", ["mnist.npz", "train.npz"])
def test_one_file_may_hold_all_splits(tmp_path: Path, convention: str, column: bool, file: str) -> None:
    np.savez(tmp_path / file, **arrays(convention, column=column))  # type: ignore[arg-type]
    for root in (tmp_path, tmp_path / file):
        data = load(NpzSettings(name="npz", root=str(root), image_size=8))
        for seed, part in enumerate((data.train, data.validation, data.test)):
            assert np.array_equal(all_pixels(part), some_images(len(part), (8, 8, 3), seed))
            assert part.labels.tolist() == LABELS[: len(part)].tolist()
        assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 9)


def test_splits_that_one_file_lacks_are_cut(tmp_path: Path) -> None:
    content = arrays("keras", column=False)
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "a.npz", **{name: content[name] for name in names})  # type: ignore[arg-type]
    data = load(NpzSettings(name="npz", root=str(tmp_path), image_size=8))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 9)
    np.savez(tmp_path / "a.npz", images=content["x_train"], labels=content["y_train"])
    data = load(NpzSettings(name="npz", root=str(tmp_path), image_size=8))
    assert len(data.test) == 6


@pytest.mark.parametrize("without", ["y_train", "y_test", "x_val"])
def test_images_without_labels_in_one_file_are_reported(tmp_path: Path, without: str) -> None:
    content = arrays("keras", column=False)
    del content[without]
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        check(NpzSettings(name="npz", root=str(tmp_path)))
    assert f"it has no {without}, but" in caught.value.why


def test_several_labels_an_image_are_no_classes(tmp_path: Path) -> None:
    content = arrays("medmnist", column=False)
    np.savez(tmp_path / "a.npz", **{**content, "train_labels": np.eye(30, 14, dtype=np.uint8)})  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        check(NpzSettings(name="npz", root=str(tmp_path)))
    assert "(30, 14)" in caught.value.why


def test_the_choice_of_the_file_must_be_unambiguous(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train.npz").rename(tmp_path / "test.npz")
    with pytest.raises(DataError) as caught:
        check(NpzSettings(name="npz", root=str(tmp_path)))
    assert "train.npz: no such file" in caught.value.why
    for name in ("one two.npz", "three.npz"):
        with raises(DataError, what="npz is missing"):
            check(NpzSettings(name="npz", root=str(tmp_path)))
        np.savez(tmp_path / name, **arrays("keras", column=False))  # type: ignore[arg-type]
    (tmp_path / "test.npz").unlink()
    with raises(DataError, what="choice of the npz file is ambiguous") as caught:
        check(NpzSettings(name="npz", root=str(tmp_path)))
    assert caught.value.why.endswith("one two.npz, three.npz")
    assert caught.value.hint == f"name it: --set 'data.root={tmp_path / 'one two.npz'}'"
    check(NpzSettings(name="npz", root=str(tmp_path / "one two.npz")))


def test_a_file_s_fingerprint_is_its_content_and_it_keeps_its_class_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays("keras", column=False))  # type: ignore[arg-type]
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    settings = NpzSettings(name="npz", root=str(path), image_size=8)
    assert load(settings).classes == ("x", "y", "z")
    before = fingerprint(settings, digest)
    assert fingerprint(NpzSettings(name="npz", root=str(tmp_path)), digest) == before
    np.savez(path, **arrays("keras", column=True))  # type: ignore[arg-type]
    assert fingerprint(settings, digest) != before
