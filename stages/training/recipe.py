"""The border between a profile and the training: settings become plain arguments here."""

from __future__ import annotations

from typing import Any

from stages.training.augmentation import Augmentation
from stages.training.settings import RecipeSettings

_OPTIMIZER = ("optimizer", "learning_rate", "weight_decay", "decay_norms", "momentum")


def recipe_arguments(recipe: RecipeSettings) -> dict[str, Any]:
    """Return the keyword arguments of `fit` that a profile's recipe sets.

    `fraction` is not among them: it is an argument of `training_supply`.
    """
    names = RecipeSettings.model_fields.keys() - {"fraction", "augment"}
    return {
        **{name: getattr(recipe, name) for name in names},
        "augment": Augmentation(**recipe.augment.model_dump()),
    }


def optimizer_arguments(recipe: RecipeSettings) -> dict[str, Any]:
    """Return the keyword arguments of `create_optimizer` that a profile's recipe sets."""
    return {name: getattr(recipe, name) for name in _OPTIMIZER}
