"""The converter of packed CIFAR files, run as a user runs it; what it writes is read as a data set."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.data.load import load
from stages.data.settings import NpzSettings
from tests.shared_data import shared
from tests.stages.data.conftest import all_pixels, digest, some_images

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "convert_cifar.py"


def write_strips(path: Path, images: np.ndarray, labels: np.ndarray, a_strip: int) -> None:
    arrays: dict[str, Any] = {"labels": labels.astype(np.uint8), "filenames": np.array(["x"] * len(labels))}
    for number, start in enumerate(range(0, len(images), a_strip)):
        strip = images[start : start + a_strip].reshape(-1, images.shape[2], 3)
        stream = io.BytesIO()
        Image.fromarray(strip).save(stream, "WEBP", lossless=True)
        arrays[f"s{number:03d}"] = np.frombuffer(stream.getvalue(), np.uint8)
    np.savez(path, **arrays)


def run(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_converted_set_has_the_same_pixels(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "target"
    source.mkdir()
    images, labels = some_images(40, (32, 32, 3)), np.tile(np.arange(4), 10)
    write_strips(source / "train_0.npz", images[:20], labels[:20], a_strip=5)
    write_strips(source / "train_1.npz", images[20:], labels[20:], a_strip=5)
    test = some_images(8, (32, 32, 3), seed=3)
    write_strips(source / "test.npz", test, labels[:8], a_strip=4)
    (source / "classes.txt").write_text("a\nb\nc\nd\n")
    done = run(source, target)
    assert done.returncode == 0, done.stderr
    assert f"sum R, G, B: {images[..., 0].sum(dtype=int)}," in done.stdout
    with np.load(target / "train.npz") as written:
        assert np.array_equal(written["images"], images)
        assert np.array_equal(written["labels"], labels)
    data = load(NpzSettings(name="npz", root=str(target), image_size=32))
    assert data.classes == ("a", "b", "c", "d")
    assert np.array_equal(all_pixels(data.test), test)
    assert sorted(path.name for path in target.iterdir()) == ["classes.txt", "test.npz", "train.npz"]


def test_fewer_images_are_equally_many_of_each_class(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    images, labels = some_images(40, (32, 32, 3)), np.repeat(np.arange(4), 10)
    for name in ("train_0.npz", "train_1.npz", "test.npz"):
        write_strips(source / name, images, labels, a_strip=5)
    done = run(source, target, "--parts", "1", "--test-images", "20")
    assert done.returncode == 0, done.stderr
    with np.load(target / "train.npz") as written:
        assert np.array_equal(written["images"], images)
    with np.load(target / "test.npz") as written:
        assert np.array_equal(written["images"], images[::2])
        assert np.array_equal(written["labels"], labels[::2])
    uneven = run(source, target, "--test-images", "21")
    assert uneven.returncode == 1
    assert "a multiple of the 4 classes, and at most 40" in uneven.stderr


def test_wrong_files_are_reported_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "target")
    assert done.returncode == 1
    assert "no train_*.npz" in done.stderr
    assert "Traceback" not in done.stderr
    np.savez(tmp_path / "train_0.npz", labels=np.zeros(3))
    np.savez(tmp_path / "test.npz", labels=np.zeros(3))
    assert "no strips" in run(tmp_path, tmp_path / "target").stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("empty", "damaged, or not an npz file"),
        ("cut", "damaged, or not an npz file"),
        ("labels", "20 images but 19 labels"),
        ("wide", "not squares in a row"),
        ("strip", "cannot identify image file"),
    ],
)
def test_damaged_files_leave_nothing_half_written(tmp_path: Path, damage: str, message: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train_0.npz", "test.npz"):
        write_strips(source / name, some_images(20, (32, 32, 3)), np.tile(np.arange(4), 5), a_strip=5)
    path = source / "train_0.npz"
    with np.load(path) as packed:
        arrays = dict(packed)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "labels":
        np.savez(path, **{**arrays, "labels": arrays["labels"][:-1]})
    elif damage == "wide":
        write_strips(path, some_images(20, (32, 31, 3)), np.zeros(20), a_strip=5)
    else:
        np.savez(path, **{**arrays, "s002": arrays["s002"][8:]})
    done = run(source, tmp_path / "target")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("target/*"))


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("train_0.npz", "test.npz"):
        write_strips(tmp_path / name, some_images(20, (32, 32, 3)), np.tile(np.arange(4), 5), a_strip=5)
    before = digest(tmp_path / "test.npz")
    done = run(tmp_path, tmp_path / "." / ".")
    assert done.returncode == 1
    assert "the same folder" in done.stderr
    assert digest(tmp_path / "test.npz") == before


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        ("cifar100", [1328569193, 1272680636, 1153999502]),
        ("cifar10", [1290492328, 1266775083, 1176108223]),
    ],
)
def test_the_real_test_images_have_their_exact_sums(name: str, sums: list[int]) -> None:
    specification = importlib.util.spec_from_file_location("convert_cifar", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    images, labels = program.read_strips(shared(f"{name}/test.npz"))
    assert images.shape == (10000, 32, 32, 3)
    assert [int(images[..., channel].sum(dtype=np.int64)) for channel in range(3)] == sums
    assert set(np.bincount(labels).tolist()) == {100 if name == "cifar100" else 1000}
