from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.training.augmentation import Augmentation, RandomViews, View
from stages.training.seeds import derive_seed, epoch_order

COUNT, SIDE = 64, 12


def _images(channels: int = 3) -> torch.Tensor:
    drawn = torch.randint(
        1, 256, (COUNT, channels, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return drawn.contiguous(memory_format=torch.channels_last)


def _labels() -> torch.Tensor:
    return torch.arange(COUNT) % 10


def _view(images: torch.Tensor, *, seed: int = 0, epoch: int = 1, rank: int = 0, **changes: Any) -> View:
    views = RandomViews(
        Augmentation(**changes),
        seed=seed,
        epoch=epoch,
        rank=rank,
        device=torch.device("cpu"),
        fill=torch.full((images.shape[1],), 100.0),
    )
    return views(images, _labels())


EVERYTHING: dict[str, Any] = {
    "pad": 2,
    "flip": True,
    "rotate_deg": 10.0,
    "scale": 0.1,
    "translate": 0.1,
    "crop": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "erase": 0.5,
}


def test_by_default_nothing_changes() -> None:
    images = _images()
    view = _view(images)
    assert torch.equal(view.images, images.float())
    assert torch.equal(view.labels, _labels())
    assert Augmentation().is_identity
    assert not Augmentation(erase=0.1).is_identity


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_views_are_a_function_of_seed_epoch_and_rank(mixing: dict[str, float]) -> None:
    settings: dict[str, Any] = {**EVERYTHING, **mixing}
    view = _view(_images(), **settings)
    assert torch.equal(view.images, _view(_images(), **settings).images)
    others: list[dict[str, Any]] = [{"seed": 1}, {"epoch": 2}, {"rank": 1}]
    for other in others:
        assert not torch.equal(view.images, _view(_images(), **other, **settings).images)


def test_everything_at_once_keeps_shape_range_and_memory_order() -> None:
    view = _view(_images(), **EVERYTHING)
    assert view.images.shape == (COUNT, 3, SIDE, SIDE)
    assert view.images.dtype == torch.float32
    assert float(view.images.min()) >= 0.0
    assert float(view.images.max()) <= 255.0
    assert view.images.is_contiguous(memory_format=torch.channels_last)


def test_pad_crop_takes_every_place_and_no_other() -> None:
    images = _images()
    changed = _view(images, pad=2).images
    padded = functional.pad(images, (2, 2, 2, 2)).float()
    places = set()
    for image, whole in zip(changed, padded, strict=True):
        fits = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, whole[:, top : top + SIDE, left : left + SIDE])
        ]
        assert fits
        places.add(fits[0])
    assert len(places) > 15


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = _images().float()
    changed = _view(_images(), flip=True).images
    mirrored = [torch.equal(view, image.flip(2)) for view, image in zip(changed, images, strict=True)]
    unchanged = [torch.equal(view, image) for view, image in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))
    assert 16 < sum(mirrored) < 48


def test_flip_together_with_a_warp_still_mirrors() -> None:
    images = torch.zeros(COUNT, 1, SIDE, SIDE, dtype=torch.uint8)
    images[:, :, :, :3] = 200  # a bar on the left
    changed = _view(images, flip=True, rotate_deg=1.0).images
    right = changed[:, 0, :, -3:].mean(dim=(1, 2)) > changed[:, 0, :, :3].mean(dim=(1, 2))
    assert 16 < int(right.sum()) < 48


def test_rotation_turns_by_every_angle_up_to_the_limit() -> None:
    images = torch.zeros(COUNT, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 24:30] = 255  # a hand that points to the right
    changed = _view(images, rotate_deg=90.0).images[:, 0]
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    mass = changed.sum(dim=(1, 2))
    angles = torch.rad2deg(
        torch.atan2((changed * rows).sum(dim=(1, 2)) / mass, (changed * columns).sum(dim=(1, 2)) / mass)
    )
    assert float(angles.abs().max()) <= 91.0
    assert float(angles.max()) > 60.0
    assert float(angles.min()) < -60.0


def test_translation_stays_within_its_share_of_the_side() -> None:
    images = torch.zeros(COUNT, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 15:18, 15:18] = 255
    changed = _view(images, translate=0.25).images[:, 0]
    rows = torch.arange(33.0)[None, :, None] - 16
    shift = (changed * rows).sum(dim=(1, 2)) / changed.sum(dim=(1, 2))
    assert 6.0 < float(shift.abs().max()) <= 0.25 * 33 + 0.1


def test_a_resized_crop_magnifies_a_part_that_lies_inside() -> None:
    # Brightness shows the position: a crop of a ramp stays in its range and loses spread.
    ramp = torch.linspace(50, 200, SIDE).to(torch.uint8).expand(COUNT, 1, SIDE, SIDE)
    changed = _view(ramp.contiguous(), crop=0.25).images
    inner = changed[:, :, 1:-1, 1:-1]
    assert float(inner.min()) >= 49.0
    assert float(inner.max()) <= 201.0
    assert float((changed[..., -1] - changed[..., 0]).mean()) < 140.0


def test_brightness_and_contrast_change_each_image_by_one_factor() -> None:
    images = torch.full((COUNT, 1, SIDE, SIDE), 100, dtype=torch.uint8)
    changed = _view(images, brightness=0.3).images
    assert float((changed.amax(dim=(1, 2, 3)) - changed.amin(dim=(1, 2, 3))).max()) == 0.0
    assert 70.0 <= float(changed.min()) < 85.0
    assert 115.0 < float(changed.max()) <= 130.0
    assert torch.allclose(_view(images, contrast=0.3).images, images.float())


def test_erasing_blanks_one_rectangle_of_some_images_with_the_mean() -> None:
    images = torch.full((COUNT, 1, SIDE, SIDE), 7, dtype=torch.uint8)
    changed = _view(images, erase=0.5).images[:, 0]
    blanked = changed == 100.0
    assert set(changed.flatten().tolist()) == {7.0, 100.0}
    hit = blanked.any(dim=2).any(dim=1)
    assert 16 < int(hit.sum()) < 48
    for mask in blanked[hit]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert bool(mask[rows][:, columns].all())  # a full rectangle
        assert 0.005 < float(mask.float().mean()) < 0.45


def test_mixup_targets_are_those_of_the_mixed_pixels() -> None:
    images = _images()
    view = _view(images, mixup=1.0)
    assert view.other is not None
    expected = view.share * images.float() + (1 - view.share) * images.float().flip(0)
    assert torch.allclose(view.images, expected, atol=1e-3)
    assert torch.equal(view.other, _labels().flip(0))
    assert torch.equal(view.labels, _labels() if view.share >= 0.5 else view.other)


def test_cutmix_share_is_the_share_of_pixels() -> None:
    images = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 1, SIDE, SIDE)
    view = _view(images.contiguous(), cutmix=1.0)
    own = (view.images == images.float()).float().mean(dim=(1, 2, 3))
    assert torch.allclose(own, torch.full_like(own, view.share), atol=1e-6)
    assert 0.0 < view.share < 1.0


def test_mixed_cross_entropy_is_that_of_the_soft_targets() -> None:
    view = _view(_images(), mixup=1.0)
    assert view.other is not None
    logits = torch.randn(COUNT, 10, generator=torch.Generator().manual_seed(1))
    soft = view.share * functional.one_hot(view.first, 10) + (1 - view.share) * functional.one_hot(
        view.other, 10
    )
    expected = functional.cross_entropy(logits, soft, label_smoothing=0.1)
    assert torch.allclose(view.cross_entropy(logits, 0.1), expected, atol=1e-6)


def test_with_both_mixings_both_occur() -> None:
    views = RandomViews(
        Augmentation(mixup=1.0, cutmix=1.0),
        seed=0,
        epoch=1,
        rank=0,
        device=torch.device("cpu"),
        fill=torch.zeros(1),
    )
    images = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 1, SIDE, SIDE)
    whole = [
        bool((views(images, _labels()).images == images.float()).any()) for _ in range(16)
    ]  # only cutmix leaves pixels as they were
    assert 0 < sum(whole) < 16


def test_orders_are_permutations_that_differ_by_epoch_and_seed() -> None:
    order = epoch_order(50, seed=3, epoch=1)
    assert sorted(order.tolist()) == list(range(50))
    assert np.array_equal(order, epoch_order(50, seed=3, epoch=1))
    assert not np.array_equal(order, epoch_order(50, seed=3, epoch=2))
    assert not np.array_equal(order, epoch_order(50, seed=4, epoch=1))


def test_seeds_differ_by_purpose_and_fit_a_generator() -> None:
    seeds = {derive_seed(0, 1, purpose, rank) for purpose in ("order", "views", "mixing") for rank in (0, 1)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
