from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.onnx_files.calibration import audit, divide, doubts, draw, provenance

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


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    images=st.integers(8, 60),
    holdout=st.integers(8, 60),
    seed=st.integers(0, 5),
)
def test_no_image_is_both_calibrated_with_and_held_out(
    counts: list[int], images: int, holdout: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen, held = divide(labels, images, holdout, seed)
    assert not set(chosen.tolist()) & set(held.tolist())
    assert len(set(chosen.tolist())) == len(chosen) <= images
    assert len(set(held.tolist())) == len(held) <= holdout
    if min(counts) > images + holdout:
        assert (len(chosen), len(held)) == (images, holdout)
        np.testing.assert_array_equal(chosen, draw(labels, images, seed))
    assert set(labels[chosen]) == set(labels) or images < len(counts)


def test_a_rare_class_is_held_out_too() -> None:
    labels = np.repeat([0, 1], [500, 8])
    chosen, held = divide(labels, 32, 32, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [28, 4]
    assert np.bincount(labels[held]).tolist() == [28, 4]


def test_images_that_are_blank_repeated_or_judged_on_are_counted_and_doubted() -> None:
    pixels = _pixels(128, 50)
    pixels[3] = 9
    pixels[5] = pixels[4]
    validation = pixels[[0, 1, 150, 151]]
    chosen, held = np.arange(10), np.array([20, 21])
    found = provenance(_Images(pixels), chosen, held, _Images(validation), 4)
    assert (found["repeated"], found["blank"], found["in_holdout"], found["in_validation"]) == (1, 1, 0, 2)
    assert found["validation_compared"] == 4
    audited = audit(_Images(pixels), np.arange(200) % 2, chosen, ["a", "b"], FACTS)
    said = doubts(audited | found)
    assert len(said) == 3
    assert any("2 of 10 calibration images occur among the validation images" in doubt for doubt in said)
    assert provenance(_Images(pixels), chosen, chosen[:4], _Images(validation), 4)["in_holdout"] == 4
