"""What is looked at before a training starts: faults found in seconds, not after an hour."""

from __future__ import annotations

from types import SimpleNamespace

from pipeline.errors import UsageError
from stages.data import load as data_sets
from stages.data.torchvision import sets as torchvision_sets
from stages.data.torchvision.table import SETS
from stages.models import create as models
from stages.models.network_input import network_preprocessing
from stages.models.settings import ModelSettings
from stages.training import batches, fabric
from stages.training import recipe as recipes
from stages.training.settings import RecipeSettings


def check(settings: SimpleNamespace, model: ModelSettings, recipe: RecipeSettings, *, section: str) -> None:
    """Raises UsageError or MachineCannot for what cannot be trained as the profile says.

    section: the recipe's place in the profile, train or distill. The quick looks come first; the
    data are read last.
    """
    compute = fabric.resolve(settings.compute)
    whose = "teacher" if section == "train" else "student"
    if recipe.epochs:
        recipes.check(recipe, section)
    elif not (model.pretrained or model.checkpoint):
        raise UsageError(
            f"With {section}.epochs: 0 the {whose} keeps its starting weights, which are random here",
            where=f"{section}.epochs",
            why=f"neither {whose}.checkpoint nor {whose}.pretrained is set",
            hint=f"--set {section}.epochs=20, or --set {whose}.checkpoint=FILE",
        )
    batches.refuse_unequal_shares(recipe, compute.devices, section)
    size = model.image_size or settings.data.image_size
    models.check(model, classes=None, channels=None, image_size=size)
    data_sets.check(settings.data)
    if settings.data.name in SETS and torchvision_sets.needs_download(settings.data):
        return
    data = data_sets.load(settings.data)
    batches.refuse_large_batch(recipe, round(len(data.train) * recipe.fraction), section)
    models.check(
        model,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=network_preprocessing(model, data.preprocessing).side,
    )
