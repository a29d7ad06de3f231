"""Checks of the batch size. Light: a check of a profile loads no PyTorch for it."""

from __future__ import annotations

from pipeline.errors import UsageError


def refuse_unequal_shares(batch_size: int, devices: int, section: str) -> None:
    """Raise UsageError if the devices cannot share a batch equally.

    Args:
        batch_size: Images a step, over all devices.
        devices: Number of devices.
        section: The recipe's section of the profile, for the message.
    """
    spare = batch_size % devices
    if spare:
        raise UsageError(
            f"A batch of {batch_size} images cannot be shared equally by {devices} devices",
            where=f"{section}.batch_size",
            hint=f"--set {section}.batch_size={batch_size - spare + devices}",
        )


def refuse_large_batch(batch_size: int, image_count: int, section: str) -> None:
    """Raise UsageError if the training images do not fill one batch.

    Args:
        batch_size: Images a step, over all devices.
        image_count: Number of training images.
        section: The recipe's section of the profile, for the message.
    """
    if batch_size > image_count:
        raise UsageError(
            f"A batch of {batch_size} images is larger than the training set",
            where=f"{section}.batch_size",
            why=f"{image_count} training images are left after validation, test and {section}.fraction",
            hint=f"--set {section}.batch_size={max(1, image_count // 8)}",
        )
