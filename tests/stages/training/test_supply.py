from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.data.load import DataSet, Split, load
from stages.training import supply
from stages.training.supply import Normalise, Supply, training_supply
from tests.stages.training import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load(tiny.settings("train").data)


def _all(source: Supply, **how: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(source.batches(50, **how))  # type: ignore[arg-type]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_streamed_and_resident_batches_are_the_same(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    part = np.arange(5, 185)
    order = np.random.default_rng(0).permutation(180)[:171]
    resident = Supply(data.train, CPU, part=part)
    monkeypatch.setattr(supply, "RESIDENT_BYTES", 0)
    streamed = Supply(data.train, CPU, part=part)
    assert resident.resident
    assert not streamed.resident
    for how in ({}, {"order": order}, {"order": order, "drop_last": True}):
        a, b = _all(resident, **how), _all(streamed, **how)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert len(_all(resident, order=order, drop_last=True)[1]) == 150
    assert streamed.waited_s > 0.0


def test_batches_are_the_splits_images_in_order(data: DataSet) -> None:
    order = np.array([3, 0, 7])
    ((images, labels),) = Supply(data.train, CPU).batches(8, order=order)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), data.train.images.batch(order))
    assert labels.tolist() == data.train.labels[order].tolist()


def test_a_fraction_keeps_every_class(data: DataSet) -> None:
    part = training_supply(data, CPU, fraction=0.05)
    assert part.count == round(0.05 * len(data.train.labels))
    assert set(part.labels.tolist()) == set(range(10))
    whole = training_supply(data, CPU)
    assert whole.count == len(data.train.labels)


def test_normalising_is_scale_mean_and_deviation(data: DataSet) -> None:
    split: Split = data.test
    pixels = split.images.batch(np.arange(4))
    facts = data.preprocessing
    expected = (pixels.astype(np.float64) * facts.scale - np.array(facts.mean)) / np.array(facts.std)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for channels_last in (True, False):
        normalised = Normalise(facts, CPU, channels_last=channels_last)(images)
        assert normalised.dtype == torch.float32
        assert np.allclose(normalised.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
