from __future__ import annotations

from typing import Any

import numpy as np

from stages.onnx_files.calibration import audit, doubts, draw

FACTS: dict[str, Any] = {"channels": 2, "scale": 1 / 255, "mean": [0.5, 0.5], "std": [0.25, 0.25]}


class _Images:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def batch(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices]


def _pixels(mean: float, std: float) -> np.ndarray:
    values = np.random.default_rng(0).normal(mean, std, (200, 4, 4, 2))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def test_every_class_has_its_turn_however_rare() -> None:
    labels = np.array([0] * 500 + [1] * 20 + [2] * 100)
    chosen = draw(labels, 90, seed=3)
    assert len(set(chosen.tolist())) == 90
    assert np.bincount(labels[chosen]).tolist() == [35, 20, 35]
    assert np.bincount(labels[chosen[:30]]).tolist() == [10, 10, 10]


def test_a_draw_is_fixed_by_its_seed_and_takes_no_more_than_there_is() -> None:
    labels = np.arange(60) % 4
    np.testing.assert_array_equal(draw(labels, 20, seed=1), draw(labels, 20, seed=1))
    assert draw(labels, 20, seed=1).tolist() != draw(labels, 20, seed=2).tolist()
    assert sorted(draw(labels, 1000, seed=1).tolist()) == list(range(60))


def test_the_audit_tells_mean_and_deviation_of_what_was_chosen() -> None:
    pixels = _pixels(128, 50)
    pixels[100:] = 7
    chosen = np.arange(100)
    found = audit(_Images(pixels), np.arange(200) % 2, chosen, ["a", "b"], FACTS)
    scaled = pixels[:100] / 255
    np.testing.assert_allclose(found["mean"], scaled.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found["std"], scaled.std((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found["normalised_std"], scaled.std((0, 1, 2)) / 0.25, atol=1e-6)
    assert found["per_class"] == [{"class": "a", "images": 50}, {"class": "b", "images": 50}]
    assert (found["pixel_min"], found["pixel_max"]) == (pixels[:100].min(), pixels[:100].max())
    assert doubts(found) == []


def test_images_that_the_preprocessing_was_not_made_for_are_doubted() -> None:
    labels = np.zeros(200, dtype=np.int64)
    dark = audit(_Images(_pixels(20, 5)), labels, np.arange(200), ["a"], FACTS)
    assert any("data.mean" in doubt for doubt in doubts(dark))


def test_classes_without_an_image_are_named() -> None:
    found = audit(
        _Images(_pixels(128, 50)), np.zeros(200, dtype=np.int64), np.arange(8), ["a", "rare"], FACTS
    )
    assert any("rare" in doubt for doubt in doubts(found))
