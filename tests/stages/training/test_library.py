"""The training as a library: plain arguments with the profile's defaults, and an example that runs."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from pydantic import BaseModel

from pipeline.errors import UsageError
from stages.data.load import DataSet, load
from stages.data.settings import DataSettings
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.settings import profile_model
from stages.training import augmentation, loop
from stages.training.augmentation import Augmentation
from stages.training.loop import fit
from stages.training.optimizers import create_optimizer
from stages.training.outcome import Outcome
from stages.training.recipe import optimizer_arguments, recipe_arguments
from stages.training.schedules import create_scheduler
from stages.training.settings import AugmentSettings, ComputeSettings, DistillSettings, RecipeSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Distillation, SupervisedTask
from tests.errors import raises
from tests.stages.training import tiny

PROFILE_SEED = profile_model().model_fields["seed"].default


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load(tiny.settings("train").data)


def _defaults(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the plain arguments that have one."""
    parameters = inspect.signature(component).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _settings(*kinds: type[BaseModel]) -> dict[str, Any]:
    """Return the defaults of the profile's keys; lists as tuples, because arguments must not be mutable."""
    defaults: dict[str, Any] = {}
    for kind in kinds:
        for name, field in kind.model_fields.items():
            value = field.get_default(call_default_factory=True)
            defaults[name] = tuple(value) if isinstance(value, list) else value
    return defaults


def test_the_defaults_of_fit_are_those_of_the_profile() -> None:
    arguments = _defaults(fit)
    expected = _settings(RecipeSettings)
    expected.pop("fraction")  # an argument of training_supply
    assert expected.pop("augment") == AugmentSettings()
    assert arguments.pop("augment") == Augmentation()
    assert expected.items() <= arguments.items()
    compute = _settings(ComputeSettings)
    more = {name: arguments[name] for name in arguments.keys() - expected.keys()}
    assert more == {
        "channels_last": compute["channels_last"],
        "compile": compute["compile"],
        "seed": PROFILE_SEED,
        "section": "train",
        "progress": None,
        "checkpoints": None,
        "more_follows": False,
    }


@pytest.mark.parametrize("component", [create_optimizer, create_scheduler, training_supply, Distillation])
def test_the_defaults_of_a_component_are_those_of_the_profile(component: Callable[..., Any]) -> None:
    settings = {**_settings(DistillSettings, DataSettings), "optimizer": RecipeSettings().optimizer}
    shared = _defaults(component).keys() & settings.keys()
    assert shared
    assert {name: _defaults(component)[name] for name in shared} == {name: settings[name] for name in shared}


def test_the_defaults_of_an_augmentation_are_those_of_the_profile() -> None:
    assert {field.name: field.default for field in fields(Augmentation)} == _settings(AugmentSettings)


def test_a_recipe_is_unpacked_without_loss() -> None:
    recipe = RecipeSettings.model_validate(
        {
            "epochs": 7,
            "batch_size": 12,
            "fraction": 0.5,
            "optimizer": "sgd",
            "learning_rate": 0.3,
            "weight_decay": 0.4,
            "decay_norms": True,
            "momentum": 0.5,
            "schedule": "multistep",
            "warmup_epochs": 2.0,
            "decay_epochs": [3, 5],
            "decay_rate": 0.6,
            "min_learning_rate": 0.01,
            "label_smoothing": 0.2,
            "clip_grad": 3.0,
            "ema": 0.8,
            "keep": "last",
            "augment": {"pad": 2, "mixup": 0.3},
        }
    )
    default = RecipeSettings()
    assert all(getattr(recipe, name) != getattr(default, name) for name in RecipeSettings.model_fields)
    arguments = recipe_arguments(recipe)
    assert arguments["augment"] == Augmentation(pad=2, mixup=0.3)
    given = recipe.model_dump(exclude={"fraction", "augment"})
    assert {name: arguments[name] for name in given} == given
    assert arguments.keys() == given.keys() | {"augment"}
    assert optimizer_arguments(recipe).items() <= given.items()
    assert optimizer_arguments(recipe).keys() == _defaults(create_optimizer).keys() - {"fused", "section"}


@pytest.mark.long
@pytest.mark.parametrize("component", [fit, augmentation.Augmentation])
def test_the_example_in_the_docstring_runs(component: Callable[..., Any]) -> None:
    module = loop if component is fit else augmentation
    names = vars(module).copy()
    (example,) = doctest.DocTestFinder(recurse=False).find(component, component.__name__, globs=names)
    torch.manual_seed(0)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 1
    assert result.failed == 0


def _fit(data: DataSet, **arguments: Any) -> Outcome:
    torch.manual_seed(0)
    network = create(ModelSettings(model="test_resnet"), classes=10, channels=1, image_size=16)
    fabric = Fabric(accelerator="cpu", devices=1)
    training = training_supply(data, fabric.device, fraction=0.1)
    validation = Supply(data.validation, fabric.device)
    return fit(fabric, SupervisedTask(network, data.preprocessing), training, validation, **arguments)


def test_a_training_without_a_profile_is_that_of_the_profile(data: DataSet) -> None:
    plain = _fit(data, epochs=2, batch_size=32, learning_rate=2e-3, augment=Augmentation(pad=1))
    recipe = RecipeSettings.model_validate(
        {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "augment": {"pad": 1}}
    )
    assert plain.history == _fit(data, **recipe_arguments(recipe)).history
    assert plain.history != _fit(data, **{**recipe_arguments(recipe), "learning_rate": 1e-3}).history


def test_a_batch_larger_than_the_training_set_is_refused(data: DataSet) -> None:
    with raises(UsageError, what="larger than the training set") as caught:
        _fit(data, batch_size=5000, section="distill")
    assert caught.value.where == "distill.batch_size"
