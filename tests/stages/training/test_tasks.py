from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.data.load import DataSet, load
from stages.methods.settings import KdSettings, MethodSettings, MsdcrdSettings
from stages.models.create import create
from stages.models.features import Needs
from stages.models.settings import ModelSettings
from stages.training import fabric
from stages.training.augmentation import Augmentation
from stages.training.loop import fit
from stages.training.optimizers import create_optimizer
from stages.training.outcome import Outcome
from stages.training.settings import ComputeSettings
from stages.training.supply import Normalise, Supply, training_supply
from stages.training.tasks import Distillation, column_names, needs_of
from tests.stages.training import tiny

CPU = torch.device("cpu")
COMPUTE = ComputeSettings(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load(tiny.settings("train").data)


def _network(name: str) -> torch.nn.Module:
    return create(ModelSettings(model=name), classes=10, channels=1, image_size=16)


def _task(data: DataSet, *methods: MethodSettings, teacher_mean: float | None = None) -> Distillation:
    torch.manual_seed(0)
    facts = data.preprocessing
    its = facts if teacher_mean is None else replace(facts, mean=(teacher_mean,))
    chosen = methods or (MsdcrdSettings(name="msdcrd", learn_tau=True),)
    return Distillation(
        _network("test_byobnet"),
        _network("test_resnet"),
        chosen,
        (facts, its),
        label_weight=1.0,
        labels=torch.from_numpy(data.train.labels),
    )


def _fit(task: Distillation, data: DataSet, **augment: Any) -> Outcome:
    compute = fabric.resolve(COMPUTE)
    with fabric.reproducible(compute, seed=0):
        return fit(
            fabric.make(compute),
            task,
            training_supply(data, CPU, fraction=0.1),
            Supply(data.validation, CPU),
            epochs=1,
            batch_size=32,
            augment=Augmentation(**augment),
        )


def _teacher(task: Distillation) -> torch.nn.Module:
    return task._observers[1].model


@pytest.mark.parametrize("augment", [{}, {"pad": 1}])
def test_training_leaves_the_teacher_as_it_was(data: DataSet, augment: dict[str, Any]) -> None:
    task = _task(data)
    before = {name: value.clone() for name, value in _teacher(task).state_dict().items()}
    _fit(task, data, **augment)
    for name, value in _teacher(task).state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in _teacher(task).parameters())
    task.train()
    assert not any(module.training for module in _teacher(task).modules())


def test_the_teacher_is_no_part_of_the_task(data: DataSet) -> None:
    task = _task(data)
    inside = {id(parameter) for parameter in task.parameters()}
    assert not any(id(parameter) in inside for parameter in _teacher(task).parameters())
    sizes = sum(value.numel() for name, value in task.state_dict().items() if name.startswith("network."))
    assert sizes == sum(value.numel() for value in task.network.state_dict().values())


def test_every_parameter_with_a_gradient_is_in_an_optimiser_group(data: DataSet) -> None:
    task = _task(data)
    images = Normalise(data.preprocessing, CPU)(torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8))
    logits, losses = task(torch.arange(8), torch.arange(8), images, images)
    (logits.square().mean() + losses.sum()).backward()
    held = {id(parameter) for group in create_optimizer(task).param_groups for parameter in group["params"]}
    learning = [name for name, parameter in task.named_parameters() if parameter.grad is not None]
    assert any(name.startswith("methods.") for name in learning)
    assert all(id(dict(task.named_parameters())[name]) in held for name in learning)
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    _fit(task, data)
    after = dict(task.named_parameters())
    still = [name for name in learning if torch.equal(after[name], before[name])]
    # The maps are one cell here: with one region the feature-wise loss is 0, its temperature rests.
    assert set(still) <= {"methods.0.log_tau.feature"}


def test_cached_features_give_the_losses_of_fresh_ones(data: DataSet) -> None:
    task = _task(data, MsdcrdSettings(name="msdcrd", layers=[-1, -2]), KdSettings(name="kd"))
    training = Supply(data.train, CPU)
    normalise = Normalise(data.preprocessing, CPU)
    which = torch.tensor([5, 900, 0, 77])
    ((images, labels),) = training.batches(4, order=which.numpy())
    shown = normalise(images)
    task.eval()
    assert task.views == 2
    fresh = task(labels, which, shown, shown)[1]
    reports: list[int] = []
    task.cache_features(training, normalise, contextlib.nullcontext, reports.append)
    assert reports[-1] == training.count
    assert task.views == 1
    assert torch.allclose(task(labels, which, shown)[1], fresh, rtol=1e-4, atol=1e-5)


def test_the_teacher_sees_images_by_its_own_constants(data: DataSet) -> None:
    same = _fit(_task(data, KdSettings(name="kd")), data)
    other = _fit(_task(data, KdSettings(name="kd"), teacher_mean=0.9), data)
    fresh = _fit(_task(data, KdSettings(name="kd"), teacher_mean=0.9), data, brightness=1e-9)
    assert same.history[0]["loss_kd"] != pytest.approx(other.history[0]["loss_kd"], rel=1e-3)
    # Cached or not, it is the teacher's own constants that count.
    assert other.history[0]["loss_kd"] == pytest.approx(fresh.history[0]["loss_kd"], rel=1e-3)


def test_the_history_adds_up_to_the_training_loss(data: DataSet) -> None:
    methods = (MsdcrdSettings(name="msdcrd", weight=0.5), KdSettings(name="kd", weight=2.0))
    (row,) = _fit(_task(data, *methods), data, mixup=0.2, pad=1).history
    parts = row["loss_labels"] + row["loss_msdcrd"] + row["loss_kd"]
    assert row["train_loss"] == pytest.approx(parts, rel=1e-5)


def test_weights_rise_over_the_warm_up(data: DataSet) -> None:
    task = _task(data, KdSettings(name="kd", weight=3.0, warmup_epochs=2.0))
    assert [task.factors(progress)[0] for progress in (0.0, 0.5, 1.0, 2.0, 5.0)] == [0, 0.75, 1.5, 3, 3]


def test_names_and_needs_of_methods() -> None:
    kd, near = KdSettings(name="kd"), MsdcrdSettings(name="msdcrd", layers=[-1, 1])
    assert column_names([kd, near, kd]) == ("kd", "msdcrd", "kd_2")
    assert needs_of([kd, near]) == Needs(stages=(-1, 1))
    assert needs_of([kd]) == Needs()
