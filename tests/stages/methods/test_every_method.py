"""What holds for each built-in method alike, on made-up maps and on small real networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.data.load import DataSet, load
from stages.methods import registry
from stages.methods.base import Batch, Method
from stages.methods.settings import BUILT_IN, MethodSettings
from stages.models.create import create
from stages.models.features import Features
from stages.models.settings import ModelSettings
from stages.training import fabric
from stages.training.loop import fit
from stages.training.optimizers import create_optimizer
from stages.training.settings import ComputeSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Distillation
from tests.stages.methods import made
from tests.stages.training import tiny

CPU = torch.device("cpu")
IMAGES = 6
TRAINING_LABELS = torch.arange(60) % made.CLASSES

SETTINGS: dict[str, dict[str, Any]] = {"fitnet": {"hints": "all"}}
"""By method, what it is told here beside its name."""

ALIKE = {"simkd"}
"""Methods whose student shows a map of the teacher's shape."""


def settings_of(kind: type[MethodSettings]) -> MethodSettings:
    name = name_of(kind)
    return kind.model_validate({"name": name, **SETTINGS.get(name, {})})


def name_of(kind: type[MethodSettings]) -> str:
    return str(kind.model_fields["name"].annotation.__args__[0])  # type: ignore[union-attr]


NAMES = {name_of(kind): settings_of(kind) for kind in BUILT_IN}
by_name = pytest.mark.parametrize("name", NAMES)


@dataclass
class Case:
    """A method with the maps that it is given; `leaves` are the student's, which take the gradient."""

    method: Method
    leaves: list[Tensor]
    teacher_leaves: list[Tensor]
    labels: Tensor
    indices: Tensor

    def loss(self, order: Tensor | None = None) -> Tensor:
        return step(self.method, *self.given(order))

    def given(self, order: Tensor | None = None) -> tuple[Features, Features, Batch]:
        """What the method is called with, for the images in this order."""
        chosen = torch.arange(len(self.labels)) if order is None else order
        student = shown([leaf[chosen] for leaf in self.leaves], seed=5)
        with torch.no_grad():
            teacher = shown([leaf[chosen] for leaf in self.teacher_leaves], seed=6)
        batch = made.batch(
            self.labels[chosen],
            made.head(teacher.map.shape[1], 6).to(teacher.map.device),
            indices=self.indices[chosen],
            shown=teacher,
        )
        return student, teacher, batch

    def on(self, device: str) -> Case:
        """The same on another device."""
        return Case(
            self.method.to(device),
            [leaf.detach().to(device).requires_grad_() for leaf in self.leaves],
            [leaf.to(device) for leaf in self.teacher_leaves],
            self.labels.to(device),
            self.indices.to(device),
        )


def step(method: Method, student: Features, teacher: Features, batch: Batch) -> Tensor:
    """One step with the same draws every time."""
    torch.manual_seed(11)
    loss: Tensor = method(student, teacher, batch)
    return loss


def shown(ends: list[Tensor], seed: int) -> Features:
    return made.features(ends[-1], ends=tuple(ends), seed=seed)


def case(name: str, images: int = IMAGES, fill: Callable[[Tensor], Tensor] = lambda maps: maps) -> Case:
    sizes = [(4, 16, 16), (6, 8, 8), (6, 4, 4)]
    smaller = sizes if name in ALIKE else [(3, 8, 8), (4, 4, 4), (4, 2, 2)]
    ours = [fill(made.maps(images, *size, seed=n)) for n, size in enumerate(smaller)]
    theirs = [fill(made.maps(images, *size, seed=10 + n)) for n, size in enumerate(sizes)]
    torch.manual_seed(1)
    method = registry.make(NAMES[name], made.spec(shown(ours, 5)), made.spec(shown(theirs, 6)))
    method.prepare(TRAINING_LABELS)
    indices = torch.arange(images) * 7 % len(TRAINING_LABELS)
    leaves = [leaf.clone().requires_grad_() for leaf in ours]
    return Case(method.train(), leaves, theirs, TRAINING_LABELS[indices], indices)


@by_name
def test_the_loss_is_a_float32_scalar_whose_gradient_reaches_the_student(name: str) -> None:
    made_case = case(name)
    loss = made_case.loss()
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    deepest = made_case.leaves[-1].grad
    assert deepest is not None
    assert deepest.abs().sum() > 0
    assert all(torch.isfinite(leaf.grad).all() for leaf in made_case.leaves if leaf.grad is not None)


@by_name
def test_what_the_method_learns_gets_a_gradient(name: str) -> None:
    made_case = case(name)
    made_case.loss().backward()
    idle = {key for key, value in made_case.method.named_parameters() if value.grad is None}
    assert idle == set()


@by_name
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    made_case = case(name)
    state = {key: value.clone() for key, value in made_case.method.state_dict().items()}
    value = made_case.loss()
    made_case.method.load_state_dict(state)
    other = made_case.loss(torch.tensor([3, 0, 5, 1, 4, 2]))
    assert other.item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


@by_name
def test_a_step_under_bf16_gives_nearly_the_same(name: str) -> None:
    precise, rough = case(name).loss(), case(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rough.loss()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(precise.item(), rel=0.1, abs=0.05)
    assert all(torch.isfinite(leaf.grad).all() for leaf in rough.leaves if leaf.grad is not None)


@by_name
@pytest.mark.parametrize("images", [1, 2, 3])
def test_small_batches(name: str, images: int) -> None:
    finite(case(name, images))


@by_name
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-12])
def test_features_that_have_collapsed_to_one_point(name: str, value: float) -> None:
    finite(case(name, fill=lambda maps: torch.full_like(maps, value)))


@by_name
def test_features_that_are_very_large(name: str) -> None:
    finite(case(name, fill=lambda maps: 1e4 * maps))


@by_name
def test_a_smaller_batch_after_a_full_one(name: str) -> None:
    made_case = case(name)
    made_case.loss().backward()
    loss = made_case.loss(torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss)


def finite(made_case: Case) -> None:
    loss = made_case.loss()
    loss.backward()
    assert torch.isfinite(loss)
    grown = [leaf.grad for leaf in (*made_case.leaves, *made_case.method.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in grown if gradient is not None)


# --- with real networks


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load(tiny.settings("train").data)


def task_of(name: str, data: DataSet) -> Distillation:
    torch.manual_seed(0)
    small = {"classes": 10, "channels": 1, "image_size": 16}
    student, teacher = (
        create(ModelSettings(model=model, stem="small"), **small)
        for model in ("test_efficientnet", "test_resnet")
    )
    labels = torch.from_numpy(data.train.labels)
    facts = data.preprocessing
    return Distillation(student, teacher, [NAMES[name]], (facts, facts), label_weight=1.0, labels=labels)


@pytest.mark.long
@by_name
def test_an_epoch_moves_the_student_and_the_method_and_never_the_teacher(name: str, data: DataSet) -> None:
    if name in ALIKE:
        pytest.skip("its student is another network: tests/stages/methods/test_simkd.py")
    task = task_of(name, data)
    teacher = task._observers[1].model
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    learnt = {key: value.detach().clone() for key, value in task.named_parameters()}
    compute = ComputeSettings(device="cpu", precision="fp32", threads=1)

    with fabric.reproducible(fabric.resolve(compute), seed=0):
        outcome = fit(
            fabric.make(fabric.resolve(compute)),
            task,
            training_supply(data, CPU, fraction=0.1),
            Supply(data.validation, CPU),
            epochs=1,
            batch_size=32,
        )
    after = teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert math.isfinite(outcome.history[0][f"loss_{name}"])
    held = {id(parameter) for group in create_optimizer(task).param_groups for parameter in group["params"]}
    assert all(id(parameter) in held for parameter in task.parameters() if parameter.requires_grad)
    still = {key for key, value in task.named_parameters() if torch.equal(value, learnt[key])}
    assert not {key for key in still if key.startswith("methods.")} - RESTING.get(name, set())


RESTING: dict[str, set[str]] = {}
"""Parameters that have nothing to learn from maps of these sizes."""
