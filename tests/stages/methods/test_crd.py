from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ModelError
from stages.data.load import load
from stages.methods.crd import MAX_DRAW, Crd, rows_of_other_classes
from stages.methods.settings import CrdSettings
from stages.models.create import create
from stages.models.features import Features
from stages.models.settings import ModelSettings
from stages.training import fabric
from stages.training.checkpoint import Checkpoints
from stages.training.loop import fit
from stages.training.outcome import Outcome
from stages.training.progress import ProgressSlice, images_seen
from stages.training.settings import ComputeSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Distillation
from tests.errors import raises
from tests.stages.methods import made
from tests.stages.methods.reference import Vector, dot, module, unit
from tests.stages.training import tiny

TRAINING = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 2, 1, 2])
CHOSEN = torch.tensor([4, 0, 11, 7])
SWITCHES: list[dict[str, Any]] = [
    {},
    {"negatives": 5},
    {"negatives": 5, "temperature": 0.5, "momentum": 0.0, "proj_dim": 3},
    {"shared_negatives": True},
    {"shared_negatives": True, "negatives": 5, "momentum": 0.9},
]


def pair(images: int = 4, step: int = 0) -> tuple[Features, Features]:
    return tuple(  # type: ignore[return-value]
        made.features(made.maps(images, channels, 2, 2, seed=channels + 100 * step)) for channels in (5, 7)
    )


def crd(labels: Tensor = TRAINING, **keys: Any) -> Crd:
    student, teacher = pair()
    torch.manual_seed(1)
    method = Crd(made.spec(student), made.spec(teacher), **keys)
    method.prepare(labels)
    return method


def loss(method: Crd, student: Features, teacher: Features, chosen: Tensor = CHOSEN, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return method(student, teacher, made.batch(TRAINING[chosen], indices=chosen))


def by_class(labels: list[int]) -> list[int]:
    return sorted(range(len(labels)), key=lambda i: (labels[i], i))


class Slow:
    """CRD image by image in float64, with banks by image rather than by place."""

    def __init__(self, method: Crd) -> None:
        self.method, self.labels = method, TRAINING.tolist()
        self.order = by_class(self.labels)
        self.project = [module(method.student_projector), module(method.teacher_projector)]
        self.banks: list[dict[int, Vector]] = []
        for bank in (method.student_bank, method.teacher_bank):
            self.banks.append({i: bank[place].double().tolist() for place, i in enumerate(self.order)})
        self.z: list[float] = []

    def step(self, student: Features, teacher: Features, chosen: list[int], seed: int) -> float:
        most = max(self.labels.count(label) for label in self.labels)
        k = min(self.method.negatives, len(self.labels) - most)
        torch.manual_seed(seed)
        draws = torch.randint(MAX_DRAW, (k,)).tolist()
        vectors = [
            [unit(project(v)) for v in seen.embedding.tolist()]
            for project, seen in zip(self.project, (student, teacher), strict=True)
        ]
        negatives = [self.negatives(draws, i) for i in chosen]
        total, z = 0.0, []
        for anchors, bank in ((vectors[0], self.banks[1]), (vectors[1], self.banks[0])):
            powers = [
                [math.exp(dot(a, bank[j]) / self.method.temperature) for j in [i, *far]]
                for a, i, far in zip(anchors, chosen, negatives, strict=True)
            ]
            every = [power for row in powers for power in row]
            z.append(sum(every) / len(every) * len(self.labels))
            constant = self.z[len(z) - 1] if self.z else z[-1]
            for positive, *others in powers:
                c = len(others) / len(self.labels)
                p = positive / constant
                total -= math.log(p / (p + c)) / len(chosen)
                total -= sum(math.log(c / (power / constant + c)) for power in others) / len(chosen)
        self.z = self.z or z
        share = self.method.momentum
        for rows, bank in zip(vectors, self.banks, strict=True):
            for i, new in zip(chosen, rows, strict=True):
                bank[i] = unit([share * a + (1 - share) * b for a, b in zip(bank[i], new, strict=True)])
        return total

    def negatives(self, draws: list[int], i: int) -> list[int]:
        if self.method.shared_negatives:
            drawn = [self.order[draw % len(self.order)] for draw in draws]
            return [j for j in drawn if self.labels[j] != self.labels[i]]
        others = [j for j in self.order if self.labels[j] != self.labels[i]]
        return [others[(draw + self.order.index(i)) % len(others)] for draw in draws]


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
def test_three_steps_agree_with_the_equations(keys: dict[str, Any]) -> None:
    method = crd(**keys)
    slow = Slow(method)
    for step, chosen in enumerate((CHOSEN, torch.tensor([0, 1]), torch.tensor([11, 3, 4, 5]))):
        student, teacher = pair(len(chosen), step)
        found = loss(method, student, teacher, chosen, seed=step)
        assert found.dtype == torch.float32
        expected = slow.step(student, teacher, chosen.tolist(), seed=step)
        assert found.item() == pytest.approx(expected, rel=2e-5)
    for n, bank in enumerate((method.student_bank, method.teacher_bank)):
        wanted = torch.tensor([slow.banks[n][i] for i in slow.order])
        assert torch.allclose(bank, wanted, atol=1e-6)
    assert method.log_z.exp().tolist() == pytest.approx(slow.z, rel=1e-5)


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
def test_the_gradient_is_that_of_the_loss(keys: dict[str, Any]) -> None:
    start = crd(**keys)
    loss(start, *pair())  # freezes Z, which is no part of the gradient
    student, teacher = pair(step=1)
    student.embedding = student.embedding.detach().requires_grad_()
    method = copy.deepcopy(start)
    loss(method, student, teacher).backward()

    def slow(changed: Crd, seen: Features) -> float:
        one = Slow(changed)
        one.z = start.log_z.double().exp().tolist()
        return one.step(seen, teacher, CHOSEN.tolist(), seed=3)

    assert student.embedding.grad is not None
    for row, channel in ((0, 1), (3, 2)):
        move = torch.zeros(4, 5, dtype=torch.float64)
        move[row, channel] = 1e-4
        ends = [replace(student, embedding=student.embedding.detach() + sign * move) for sign in (1, -1)]
        slope = (slow(start, ends[0]) - slow(start, ends[1])) / 2e-4
        assert student.embedding.grad[row, channel].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)
    for name in ("student_projector", "teacher_projector"):
        up, down = copy.deepcopy(start).double(), copy.deepcopy(start).double()
        with torch.no_grad():
            up.get_submodule(name).bias[1] += 1e-4  # type: ignore[operator, index]
            down.get_submodule(name).bias[1] -= 1e-4  # type: ignore[operator, index]
        slope = (slow(up, student) - slow(down, student)) / 2e-4
        gradient = method.get_parameter(f"{name}.bias").grad
        assert gradient is not None
        assert gradient[1].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_negatives_are_even_over_the_other_classes() -> None:
    sizes, images = torch.tensor([3, 4, 5]), 12
    starts = sizes.cumsum(0) - sizes
    labels = torch.tensor([0, 1, 2])
    own = torch.tensor([1, 3, 11])[:, None]
    draws = torch.randint(MAX_DRAW, (90000,), generator=torch.Generator().manual_seed(0))
    rows = rows_of_other_classes(draws, own, starts[labels][:, None], sizes[labels][:, None], images)
    for image, label in enumerate(labels.tolist()):
        found = torch.bincount(rows[image], minlength=images)
        same = slice(int(starts[label]), int(starts[label] + sizes[label]))
        assert found[same].sum() == 0
        others = images - int(sizes[label])
        even = 90000 / others
        assert (found[found > 0] - even).abs().max() < 5 * math.sqrt(even)
        assert (found > 0).sum() == others


def test_the_number_of_negatives_is_cut_to_the_images_of_other_classes() -> None:
    assert crd().available_negatives == 7  # of 12 images the largest class has 5
    assert crd(negatives=3).available_negatives == 3


def test_what_is_saved_makes_the_next_step_the_same() -> None:
    method = crd(negatives=5)
    loss(method, *pair())
    resumed = crd(negatives=5)
    resumed.student_bank.zero_()
    resumed.load_state_dict(method.state_dict())
    expected, found = (loss(one, *pair(step=1)) for one in (method, resumed))
    assert found.item() == expected.item()
    assert set(method.state_dict()) >= {"student_bank", "teacher_bank", "log_z"}


@pytest.mark.long
def test_a_resumed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    data = load(tiny.settings("train").data)
    compute = ComputeSettings(device="cpu", precision="fp32", threads=1)
    device = torch.device("cpu")

    def train(work: Path, stop_after: float | None = None) -> tuple[Outcome, Distillation]:
        progress = tiny.Recorder(stop_after)
        with fabric.reproducible(fabric.resolve(compute), seed=0):
            small = {"classes": 10, "channels": 1, "image_size": 16}
            student, teacher = (create(ModelSettings(model="test_resnet"), **small) for _ in range(2))
            training = training_supply(data, device, fraction=0.1)
            task = Distillation(
                student,
                teacher,
                [CrdSettings(name="crd", negatives=20)],
                (data.preprocessing, data.preprocessing),
                label_weight=1.0,
                labels=torch.from_numpy(training.labels),
            )
            outcome = fit(
                fabric.make(fabric.resolve(compute)),
                task,
                training,
                Supply(data.validation, device),
                epochs=2,
                batch_size=32,
                progress=ProgressSlice(progress),
                checkpoints=Checkpoints(work, "same", progress, every_s=0.0),
            )
        return outcome, task

    whole, undisturbed = train(tmp_path / "one")
    with pytest.raises(tiny.Stopped):
        train(
            tmp_path / "two",
            stop_after=0.6 * images_seen(2, 32, training_supply(data, device, fraction=0.1).count),
        )
    resumed, task = train(tmp_path / "two")
    assert resumed.history == whole.history
    expected = undisturbed.state_dict()
    assert any("bank" in name for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in task.state_dict().items())


def test_nothing_flows_back_to_the_teacher() -> None:
    student, teacher = pair()
    teacher.embedding = teacher.embedding.detach().requires_grad_()
    loss(crd(), student, teacher).backward()
    assert teacher.embedding.grad is None


def test_other_draws_give_another_loss() -> None:
    one, other = crd(negatives=3), crd(negatives=3)
    assert loss(one, *pair(), seed=1).item() != loss(other, *pair(), seed=2).item()


@pytest.mark.parametrize("shared", [False, True])
def test_training_brings_the_loss_down(shared: bool) -> None:
    method = crd(shared_negatives=shared)
    student, teacher = pair(12)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        value = loss(method, student, teacher, torch.arange(12), seed=step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


def test_one_class_is_refused() -> None:
    with raises(ModelError, what="two classes"):
        crd(torch.zeros(4, dtype=torch.int64))
