"""Whether batches come out as a profile asks. Light: a check before anything runs loads no PyTorch for it."""

from __future__ import annotations

from pipeline.errors import UsageError
from stages.training.settings import RecipeSettings


def refuse_unequal_shares(recipe: RecipeSettings, devices: int, section: str) -> None:
    """Raises UsageError if a batch cannot be shared equally by the devices."""
    spare = recipe.batch_size % devices
    if spare:
        raise UsageError(
            f"A batch of {recipe.batch_size} images cannot be shared equally by {devices} devices",
            where=f"{section}.batch_size",
            hint=f"--set {section}.batch_size={recipe.batch_size - spare + devices}",
        )


def refuse_large_batch(recipe: RecipeSettings, count: int, section: str) -> None:
    """Raises UsageError if not even one whole batch comes out of `count` training images."""
    if recipe.epochs and recipe.batch_size > count:
        raise UsageError(
            f"A batch of {recipe.batch_size} images is larger than the training set",
            where=f"{section}.batch_size",
            why=f"{count} training images are left after validation, test and {section}.fraction",
            hint=f"--set {section}.batch_size={max(1, count // 8)}",
        )
