import gzip
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.idx import read, read_file
from stages.data.load import check, load
from stages.data.settings import IdxSettings
from tests.errors import raises
from tests.shared_data import shared
from tests.stages.data.conftest import all_pixels, idx_bytes, some_images, write_idx

LABELS = np.tile(np.arange(3), 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_idx(tmp_path, some_images(30, (9, 8)), LABELS)
    write_idx(tmp_path, some_images(6, (9, 8), seed=1), LABELS[:6], part="t10k", compress=False)
    return tmp_path


def test_reads_plain_and_compressed_files_byte_for_byte(root: Path) -> None:
    raw = read(IdxSettings(name="idx", root=str(root)))
    assert np.array_equal(np.asarray(raw.train.images), some_images(30, (9, 8)))
    assert raw.test is not None
    assert np.array_equal(np.asarray(raw.test.images), some_images(6, (9, 8), seed=1))
    assert raw.train.labels.tolist() == LABELS.tolist()
    assert raw.classes == ("0", "1", "2")


def test_class_names_come_from_the_profile_then_from_the_file(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\r\nowl\n\n", encoding="utf-8")
    assert read(IdxSettings(name="idx", root=str(root))).classes == ("cat", "dog", "owl")
    given = IdxSettings(name="idx", root=str(root), classes=["a", "b", "c"])
    assert read(given).classes == ("a", "b", "c")


def test_an_official_test_split_is_used_as_it_is(root: Path) -> None:
    data = load(IdxSettings(name="idx", root=str(root), image_size=8, validation=0.2))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 6)
    assert data.test.labels.tolist() == LABELS[:6].tolist()


def test_without_one_a_test_split_is_cut(root: Path) -> None:
    for path in root.glob("t10k*"):
        path.unlink()
    data = load(IdxSettings(name="idx", root=str(root), image_size=8, test=0.2, validation=0.25))
    assert (len(data.test), len(data.validation), len(data.train)) == (6, 6, 18)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(idx_bytes(some_images(30, (9, 8))), mtime=0)[:-500], "cut short"),
        (gzip.compress(idx_bytes(some_images(30, (9, 8)))[:-5], mtime=0), "2155 follow"),
        (gzip.compress(idx_bytes(some_images(30, (9, 8))) + b"x", mtime=0), "2161 follow"),
        (gzip.compress(idx_bytes(LABELS.astype(np.uint8)), mtime=0), "expected 0x00000803"),
        (b"no gzip at all", "cannot be read"),
        (gzip.compress(b"\0\0", mtime=0), "too few"),
    ],
)
def test_damage_is_reported_with_the_file_and_the_reason(root: Path, content: bytes, reason: str) -> None:
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        check(IdxSettings(name="idx", root=str(root)))
    assert caught.value.where == str(path)
    assert reason in caught.value.why
    assert caught.value.hint


def test_labels_that_do_not_match_are_reported(root: Path) -> None:
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:29].astype(np.uint8))))
    with raises(DataError, what="do not match") as caught:
        load(IdxSettings(name="idx", root=str(root)))
    assert "29 labels" in caught.value.why
    write_idx(root, some_images(30, (9, 8)), LABELS)
    with pytest.raises(DataError) as caught:
        load(IdxSettings(name="idx", root=str(root), classes=["a", "b"]))
    assert "from 0 to 2" in caught.value.why


def test_half_a_test_split_is_refused(root: Path) -> None:
    (root / "t10k-labels-idx1-ubyte").unlink()
    with raises(DataError, why="t10k-labels"):
        load(IdxSettings(name="idx", root=str(root)))


@pytest.mark.long
def test_fashion_mnist_itself() -> None:
    root = str(shared("fashion-mnist"))
    images = read_file(Path(root) / "train-images-idx3-ubyte.gz", 3)
    assert images.shape == (60000, 28, 28)
    assert images.mean() / 255 == pytest.approx(0.28604060, abs=1e-8)
    data = load(IdxSettings(name="idx", root=root, image_size=28))
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    assert np.bincount(data.validation.labels).tolist() == [600] * 10
    assert all_pixels(data.test).shape == (10000, 28, 28, 1)
