import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.splits import cut, stratified

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)
labels_of_two = st.lists(st.integers(2, 40), min_size=1, max_size=7).flatmap(
    lambda counts: st.permutations(np.repeat(np.arange(len(counts)), counts).tolist()).map(np.array)
)
fractions = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**40)


@settings(deadline=None)
@given(label_lists, fractions, seeds)
def test_stratified_is_within_one_image_of_every_class_and_keeps_one(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    chosen = stratified(labels, fraction, seed)
    assert chosen.dtype == np.int64
    assert np.array_equal(chosen, np.unique(chosen))
    for label in np.unique(labels):
        count, taken = np.sum(labels == label), np.sum(labels[chosen] == label)
        assert taken >= 1
        assert abs(taken - count * fraction) < 1 + 1e-6 or taken == 1
    assert np.array_equal(chosen, stratified(labels, fraction, seed))


@settings(deadline=None)
@given(labels_of_two, st.floats(0.01, 0.89), seeds)
def test_a_cut_is_disjoint_complete_and_leaves_every_class_on_both_sides(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    rest, part = cut(labels, fraction, seed, stream=1)
    assert np.array_equal(np.sort(np.concatenate([rest, part])), np.arange(len(labels)))
    for label in np.unique(labels):
        count, taken = np.sum(labels == label), np.sum(labels[part] == label)
        assert 1 <= taken <= count - 1
        assert abs(taken - count * fraction) <= 1


@settings(deadline=None)
@given(label_lists, fractions, seeds)
def test_the_total_is_the_fraction_rounded_where_no_class_is_too_small(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    chosen = stratified(labels, fraction, seed)
    if min(np.bincount(labels)[np.unique(labels)]) * fraction >= 1:
        assert abs(len(chosen) - len(labels) * fraction) <= 0.5 + 1e-6


def test_more_images_of_one_class_do_not_move_the_others() -> None:
    labels = np.repeat([0, 1, 2], 20)
    more = np.concatenate([labels, np.full(20, 2)])
    before, after = stratified(labels, 0.5, 7), stratified(more, 0.5, 7)
    assert np.array_equal(before[labels[before] < 2], after[more[after] < 2])


def test_seeds_and_streams_give_different_cuts() -> None:
    labels = np.repeat(np.arange(4), 50)
    parts = [cut(labels, 0.2, seed, stream)[1].tolist() for seed in (0, 1) for stream in (1, 2)]
    assert len({tuple(part) for part in parts}) == 4


def test_the_split_is_the_one_of_every_release() -> None:
    """Fail when the split changes: that gives every user another test set."""
    assert stratified(np.repeat([0, 1], 10), 0.3, 0).tolist() == [0, 1, 6, 10, 12, 15]


@pytest.mark.parametrize("fraction", [0.1, 0.29, 1 / 3, 1.0])
def test_balanced_classes_give_balanced_parts(fraction: float) -> None:
    labels = np.tile(np.arange(10), 100)
    counts = np.bincount(labels[stratified(labels, fraction, 3)], minlength=10)
    assert counts.max() - counts.min() <= 1
