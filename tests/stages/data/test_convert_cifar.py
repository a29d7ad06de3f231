"""The converter of packed CIFAR files, run as a user runs it; what it writes is read as a data set."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.data.load import load
from stages.data.settings import NpzSettings
from tests.stages.data.conftest import all_pixels, some_images

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "convert_cifar.py"


def write_strips(path: Path, images: np.ndarray, labels: np.ndarray, a_strip: int) -> None:
    arrays: dict[str, Any] = {"labels": labels.astype(np.uint8), "filenames": np.array(["x"] * len(labels))}
    for number, start in enumerate(range(0, len(images), a_strip)):
        strip = images[start : start + a_strip].reshape(-1, images.shape[2], 3)
        stream = io.BytesIO()
        Image.fromarray(strip).save(stream, "WEBP", lossless=True)
        arrays[f"s{number:03d}"] = np.frombuffer(stream.getvalue(), np.uint8)
    np.savez(path, **arrays)


def run(*arguments: Path) -> subprocess.CompletedProcess[str]:
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


def test_wrong_files_are_told_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "target")
    assert done.returncode == 1
    assert "no train_*.npz" in done.stderr
    assert "Traceback" not in done.stderr
    np.savez(tmp_path / "train_0.npz", labels=np.zeros(3))
    np.savez(tmp_path / "test.npz", labels=np.zeros(3))
    assert "no strips" in run(tmp_path, tmp_path / "target").stderr
