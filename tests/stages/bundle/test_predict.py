"""The bundle's program reads images exactly as training does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.bundle import predict
from stages.data.images import ImageFormat, decode

RANDOM = np.random.default_rng(0)


def _picture(mode: str, width: int, height: int) -> Image.Image:
    # Smooth content, so that resizing is not dominated by noise.
    low = RANDOM.integers(0, 256, size=(5, 4, 4), dtype=np.uint8)
    rgba = Image.fromarray(low)
    rgba = rgba.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        grey = np.asarray(rgba.convert("L")).astype(np.uint16)
        return Image.fromarray(grey * 257 - grey % 97)
    if mode == "P":
        return rgba.convert("RGB").convert("P")
    return rgba if mode == "RGBA" else rgba.convert(mode)


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (16, 16), (97, 23), (33, 50)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"),
        ("RGB", "png"),
        ("L", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("I;16", "png"),
        ("CMYK", "jpg"),
        ("LA", "png"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_every_kind_of_image_is_read_as_training_reads_it(
    size: tuple[int, int], mode: str, suffix: str, channels: int, resize: str, tmp_path: Path
) -> None:
    file = tmp_path / f"image.{suffix}"
    _picture(mode, *size).save(file)
    contract = {"image_size": 16, "channels": channels, "resize": resize}
    images = predict.read_images(file, contract)
    expected = decode(file, ImageFormat(image_size=16, channels=channels, resize=resize))
    np.testing.assert_array_equal(images[0], expected)


def test_a_turned_photograph_is_turned_upright(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    image = _picture("RGB", 40, 24)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    images = predict.read_images(file, {"image_size": 16, "channels": 3, "resize": "bilinear"})
    np.testing.assert_array_equal(images[0], decode(file, ImageFormat(16, 3, "bilinear")))


def test_normalisation_by_hand() -> None:
    images = np.array([[[[0, 255]]]], dtype=np.uint8)
    contract = {"mean": [0.5, 0.25], "std": [0.5, 0.25], "scale": 1 / 255}
    np.testing.assert_allclose(predict.normalise(images, contract).ravel(), [-1.0, 3.0], rtol=1e-6)


def test_softmax_is_finite_for_large_logits() -> None:
    probabilities = predict.softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]], dtype=np.float32))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-5)


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.npy"
    np.save(file, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 16, 16, 1\)"):
        predict.read_images(file, {"image_size": 16, "channels": 1, "resize": "bilinear"})


def test_an_array_without_an_image_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"image_size": 16, "channels": 3, "resize": "bilinear", "scale": 1 / 255, "mean": [0], "std": [1]}
    manifest = {
        "default_target": "onnxruntime-fp32",
        "input": "uint8_nhwc",
        "targets": {"onnxruntime-fp32": {"runtime": "onnxruntime"}},
        "preprocessing": facts,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    np.save(tmp_path / "none.npy", np.zeros((0, 16, 16, 3), np.uint8))
    monkeypatch.setattr(predict, "HERE", tmp_path)
    assert predict.main([str(tmp_path / "none.npy")]) == 2
    assert capsys.readouterr().err == f"error: there is no image in {tmp_path / 'none.npy'}\n"
