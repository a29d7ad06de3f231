from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StageError
from stages.runtimes import parity
from stages.runtimes.images import natural_images
from stages.runtimes.shipping import what_ships
from tests.errors import raises
from tests.stages.runtimes.networks import source_of


class _Distorted:
    """A session that gives the source's own logits, changed by a function."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.facts: dict[str, Any] = {}
        self._change = change
        self._source = source_of("cnn")

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self._change(parity.source_logits(self._source.onnx, self._source, images))

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        return lambda: None


def test_equal_logits_pass() -> None:
    agreement = parity.check(_Distorted(lambda x: x), source_of("cnn"), (1, 2, 7), "same")
    assert agreement.max_abs < 1e-5
    assert agreement.top1_agreement == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, ::-1], "does not compute"),
        (lambda x: x * 1.1, "does not compute"),
        (lambda x: np.full_like(x, np.nan), "does not compute"),
        (lambda x: x[:1], "another shape"),
        (lambda x: x if len(x) < 7 else np.roll(x, 1, axis=0), "does not compute"),
    ],
    ids=["classes reversed", "scaled", "not a number", "one row only", "wrong at batch 7"],
)
def test_gross_differences_are_refused(change: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    with raises(StageError, what=message):
        parity.check(_Distorted(change), source_of("cnn"), (1, 2, 7), "student onnxruntime-fp32")


def test_one_image_decided_otherwise_is_one_of_all(tmp_path: Path) -> None:
    """The first image is a batch of its own: alone it would be an agreement of none."""
    images = natural_images(source_of("cnn").image_shape, 20, seed=1)
    np.save(tmp_path / "images.npy", images)
    source = replace(source_of("cnn"), images=tmp_path / "images.npy")
    (first,) = parity.source_logits(source.onnx, source, images[:1])

    def swapped(logits: np.ndarray) -> np.ndarray:
        """The first image's best class changes places with its worst, in whatever batch it comes."""
        first_rows = np.isclose(logits, first, atol=1e-6).all(axis=1)
        logits[np.ix_(first_rows, [first.argmax(), first.argmin()])] = first.min(), first.max()
        return logits

    limits = parity.Limits(relative=10.0, top1_agreement=0.9)
    agreement = parity.check(_Distorted(swapped), source, (1, 2, 7), "student openvino-int8", limits)
    assert 0.9 < agreement.top1_agreement < 1.0
    limits = parity.Limits(relative=10.0, top1_agreement=0.99)
    with raises(StageError, what="predicts other classes"):
        parity.check(_Distorted(swapped), source, (1, 2, 7), "student openvino-int8", limits)


@pytest.mark.parametrize(
    ("limits", "expected"), [((1, 32), (1, 2, 7)), ((1, 4), (1, 2)), ((8, 16), (8, 16)), ((4, 4), (4,))]
)
def test_batches_are_those_the_engine_takes(limits: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert parity.batches_within(*limits) == expected


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (15, 20, 3)])
def test_generated_images_are_like_photographs(shape: tuple[int, int, int]) -> None:
    images = natural_images(shape, 4, seed=1)
    assert images.shape == (4, *shape)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, natural_images(shape, 4, seed=1))
    assert (images != natural_images(shape, 4, seed=2)).mean() > 0.5
    values = images.astype(np.float64)
    assert values.std() > 20
    # Neighbours resemble each other, as they do not in white noise.
    left, right = values[:, :, :-1].ravel(), values[:, :, 1:].ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.6


def test_digest_of_one_file_and_of_several(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(b"xml")
    shipped = what_ships(tmp_path)
    assert shipped.sha256 == hashlib.sha256(b"xml").hexdigest()
    assert shipped.files == ("model.xml",)
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "timing.cache").write_bytes(b"timings")
    both = what_ships(tmp_path)
    weights, xml = (hashlib.sha256(content).hexdigest() for content in (b"weights", b"xml"))
    lines = f"{weights}  model.bin\n{xml}  model.xml\n"
    assert both.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert both.files == ("model.bin", "model.xml")
    assert both.size_bytes == len(b"xml") + len(b"weights")
