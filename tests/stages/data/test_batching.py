import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.batching import batches
from stages.data.load import Split, load
from stages.data.settings import DigitsSettings, ImageFolderSettings
from tests.errors import raises
from tests.stages.data.conftest import MakeFolder


def on_disk(root: Path) -> Split:
    return load(
        ImageFolderSettings(name="image_folder", root=str(root), image_size=8, memory_limit_gb=1e-9)
    ).train


def test_every_image_comes_once_with_its_label() -> None:
    split = load(DigitsSettings(name="digits", image_size=8)).train
    all_batches = list(batches(split, 100))
    assert [len(images) for images, _ in all_batches] == [100] * 12 + [94]
    assert np.array_equal(np.concatenate([labels for _, labels in all_batches]), split.labels)
    assert all(images.dtype == np.uint8 and images.flags.c_contiguous for images, _ in all_batches)
    assert sum(len(labels) for _, labels in batches(split, 100, drop_last=True)) == 1200


def test_the_order_is_kept_and_may_repeat(tmp_path: Path, make_folder: MakeFolder) -> None:
    split = on_disk(make_folder(tmp_path, {"a": 10, "b": 10}))
    order = np.array([5, 0, 5, 13, 1])
    ordered = list(batches(split, 2, order=order))
    assert np.array_equal(np.concatenate([images for images, _ in ordered]), split.images.batch(order))
    assert np.array_equal(np.concatenate([labels for _, labels in ordered]), split.labels[order])


@pytest.mark.parametrize("prefetch", [0, 1, 5, 50])
def test_prefetching_does_not_change_the_images(
    tmp_path: Path, make_folder: MakeFolder, prefetch: int
) -> None:
    split = on_disk(make_folder(tmp_path, {"a": 10, "b": 10}))
    images = np.concatenate([images for images, _ in batches(split, 3, prefetch=prefetch)])
    assert np.array_equal(images, split.images.batch(np.arange(len(split))))


def test_stopping_early_leaves_no_thread_behind(tmp_path: Path, make_folder: MakeFolder) -> None:
    split = on_disk(make_folder(tmp_path, {"a": 30, "b": 30}))
    iterator = batches(split, 2)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdpipe-prefetch")]


def test_a_file_that_vanishes_is_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    split = on_disk(make_folder(tmp_path, {"a": 10, "b": 10}))
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    with raises(DataError, what="cannot be read") as caught:
        list(batches(split, 4))
    assert str(tmp_path / "b") in caught.value.where


def test_an_empty_batch_size_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        batches(load(DigitsSettings(name="digits", image_size=8)).test, 0)
