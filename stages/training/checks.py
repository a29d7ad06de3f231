"""Checks of a training's settings before anything runs: faults show up in seconds, not after an hour."""

from __future__ import annotations

from types import SimpleNamespace

from pipeline.errors import UsageError
from stages.data import load as data_sets
from stages.data.torchvision import sets as torchvision_sets
from stages.data.torchvision.table import SETS
from stages.models import create as models
from stages.models.network_input import network_preprocessing
from stages.models.settings import ModelSettings
from stages.training import fabric
from stages.training.batch_size import refuse_large_batch, refuse_unequal_shares
from stages.training.optimizers import check_optimizer
from stages.training.recipe import optimizer_arguments
from stages.training.settings import RecipeSettings


def check(settings: SimpleNamespace, model: ModelSettings, recipe: RecipeSettings, *, section: str) -> None:
    """Raise an error for a profile whose network cannot be trained.

    Quick checks come first; the data are read last.

    Args:
        settings: The stage's settings, with `compute` and `data`.
        model: The network's settings.
        recipe: The recipe.
        section: The recipe's section of the profile, train or distill.

    Raises:
        UsageError: The recipe, the network or the data cannot be used.
        MachineCannot: The machine lacks the device.
    """
    compute = fabric.resolve(settings.compute)
    role = "teacher" if section == "train" else "student"
    if recipe.epochs:
        check_optimizer(**optimizer_arguments(recipe), section=section)
    elif not (model.pretrained or model.checkpoint):
        raise UsageError(
            f"With {section}.epochs: 0 the {role} keeps its starting weights, which are random here",
            where=f"{section}.epochs",
            why=f"neither {role}.checkpoint nor {role}.pretrained is set",
            hint=f"--set {section}.epochs=20, or --set {role}.checkpoint=FILE",
        )
    refuse_unequal_shares(recipe.batch_size, compute.devices, section)
    size = model.image_size or settings.data.image_size
    models.check(model, classes=None, channels=None, image_size=size)
    data_sets.check(settings.data)
    if settings.data.name in SETS and torchvision_sets.needs_download(settings.data):
        return
    data = data_sets.load(settings.data)
    if recipe.epochs:
        refuse_large_batch(recipe.batch_size, round(len(data.train) * recipe.fraction), section)
    models.check(
        model,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=network_preprocessing(model, data.preprocessing).side,
    )
