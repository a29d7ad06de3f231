from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.load import check, load
from stages.data.settings import NpzSettings
from tests.stages.data.conftest import all_pixels, some_images

LABELS = np.tile(np.arange(3), 10)


def write(root: Path, **arrays: Any) -> NpzSettings:
    np.savez_compressed(
        root / "train.npz", **{"images": some_images(30, (8, 8, 3)), "labels": LABELS, **arrays}
    )
    return NpzSettings(name="npz", root=str(root), image_size=8)


def test_what_is_fed_is_what_was_written(tmp_path: Path) -> None:
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
    ("arrays", "told"),
    [
        ({"images": some_images(30, (8, 8, 3)).astype(np.float32)}, "float32"),
        ({"images": some_images(30, (8, 8, 4))}, "(30, 8, 8, 4)"),
        ({"images": some_images(29, (8, 8, 3))}, "29 images but 30 labels"),
        ({"images": np.array([Dangerous()], dtype=object)}, "allow_pickle"),
        ({"labels": LABELS.astype(np.float64)}, "float64"),
        ({"labels": LABELS[:, None]}, "(30, 1)"),
        ({"labels": LABELS - 1}, "-1"),
        ({"labels": LABELS * 2}, "1 (0)"),
        ({"labels": np.zeros(30, int)}, "telling classes apart takes two"),
        ({"labels": np.array([2] * 2 + [0, 1] * 14)}, "2 (2)"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(DataError) as caught:
        check(write(tmp_path, **arrays))
    assert told in caught.value.why
    assert caught.value.mend


def test_a_missing_array_and_a_cut_file_are_told(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="same name"):
        load(NpzSettings(name="npz", root=str(tmp_path), classes=["a", "b", "a"]))
