from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import ModelError, UsageError
from stages import distill, evaluate, export, train
from stages.data.load import load
from stages.methods import registry
from stages.methods.base import Method
from stages.methods.settings import KdSettings, MethodSettings, SimkdSettings
from stages.methods.simkd import Simkd
from stages.models import card as cards
from stages.models.borrowed import BorrowedHead
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.onnx_files.exporting import export_network
from stages.onnx_files.settings import ExportSettings
from stages.training.tasks import Distillation
from tests.errors import raises
from tests.stages.methods import made, reference_hints
from tests.stages.training import tiny

pytestmark = pytest.mark.long

SIMKD = SimkdSettings(name="simkd")


def network(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return create(ModelSettings(model=name), classes=5, channels=1, image_size=64)


def build(*methods: MethodSettings) -> torch.nn.Module:
    return registry.build_student(
        methods, network("test_efficientnet"), network("test_resnet"), image_sizes=(64, 64), channels=1
    )


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (3, 3), (1, 2)], ids=str)
def test_agrees_with_the_equation(size: tuple[int, int]) -> None:
    ours, theirs = made.maps(3, 5, *size, seed=1), made.maps(3, 5, 4, 4, seed=2)
    student, teacher = made.features(ours), made.features(theirs)
    method = Simkd(made.spec(student), made.spec(teacher))
    found = method(student, teacher, made.batch(made.labels(3))).item()
    pooled = reference_hints.resized(reference_hints.array(theirs), size)
    assert found == pytest.approx(reference_hints.squared(reference_hints.array(ours), pooled), rel=1e-5)
    assert list(method.parameters()) == []


def test_equal_maps_lose_nothing_and_answer_alike() -> None:
    seen = made.features(made.maps(3, 5, 4, 4))
    method = Simkd(made.spec(seen), made.spec(seen))
    assert method(seen, seen, made.batch(made.labels(3))).item() == 0.0


@pytest.mark.parametrize(("channels", "side"), [(4, 4), (5, 8)])
def test_a_student_without_the_projector_is_refused(channels: int, side: int) -> None:
    student, teacher = made.features(made.maps(2, channels, side, side)), made.features(made.maps(2, 5, 4, 4))
    with raises(ModelError, what="projector"):
        Simkd(made.spec(student), made.spec(teacher))


def test_only_a_method_that_asks_for_it_builds_the_student_anew() -> None:
    assert not isinstance(build(KdSettings(name="kd")), BorrowedHead)
    assert isinstance(build(KdSettings(name="kd"), SIMKD), BorrowedHead)
    assert not registry.builds_student([KdSettings(name="kd")])
    assert registry.builds_student([KdSettings(name="kd"), SIMKD])
    with raises(ModelError, what="already"):
        build(SIMKD, SIMKD)


class Odd(Method):
    """Builds a student that no card can describe."""

    name = "odd"

    @classmethod
    def build_student(cls, student: torch.nn.Module, *_: Any, **__: Any) -> Any:
        return torch.nn.Sequential(student)

    def forward(self, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        return student.logits.mean()


class OddSettings(MethodSettings):
    """Its settings."""

    method = f"{__name__}:Odd"


def test_a_student_that_no_card_can_describe_is_refused() -> None:
    with raises(ModelError, what="no card can describe"):
        build(OddSettings())


def test_the_loss_moves_backbone_and_projector_and_never_the_classifier() -> None:
    built, teacher = build(SIMKD).train(), network("test_resnet")
    facts = tiny.settings("train").data
    data = load(facts)
    preprocessing = data.preprocessing
    task = Distillation(
        built,
        teacher,
        [SIMKD],
        (preprocessing, preprocessing),
        label_weight=0.0,
        labels=torch.zeros(8, dtype=torch.long),
    )
    images = torch.randn(8, 1, 16, 16)
    _, losses = task(torch.zeros(8, dtype=torch.long), torch.arange(8), images, images)
    losses.sum().backward()
    still = {key for key, value in built.named_parameters() if value.grad is None}
    assert still == {"classifier.weight", "classifier.bias"}


# --- the whole line, tiny


def line(folder: Path, methods: list[dict[str, Any]], teacher: Path) -> Path:
    settings = tiny.settings(
        "distill",
        student={"model": "test_efficientnet"},
        distill={"methods": methods, "label_weight": 0.0, "baseline": True, "fraction": 0.06, "epochs": 1},
    )
    distill.check(settings)
    context = tiny.context(folder, settings, inputs={"train": teacher})
    distill.run(context)
    return context.output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = tiny.context(tmp_path_factory.mktemp("teacher"), tiny.settings("train", train={"epochs": 1}))
    train.run(context)
    return context.output


@pytest.fixture(scope="module")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return line(
        tmp_path_factory.mktemp("simkd"), [{"name": "simkd"}, {"name": "kd"}, {"name": "fitnet"}], teacher
    )


def exported(folder: Path, teacher: Path, student: Path) -> dict[str, Any]:
    facts = tiny.settings("evaluate").data
    settings = SimpleNamespace(data=facts, export=ExportSettings(parity_images=8))
    context = tiny.context(folder, settings, inputs={"train": teacher, "distill": student})
    export.run(context)
    found: dict[str, Any] = json.loads((context.output / "parity.json").read_text())["student"]
    return found


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_backbone_projector_and_classifier_go_through_the_line(
    teacher: Path, distilled: Path, tmp_path: Path
) -> None:
    student, card = cards.load(distilled)
    lender, _ = cards.load(teacher)
    assert isinstance(student, BorrowedHead)
    assert torch.equal(student.classifier.weight, lender.get_classifier().weight)  # type: ignore[operator]
    parts = (student.backbone, student.projector, student.classifier)
    assert card.parameters == count(student) == sum(count(part) for part in parts)
    # The baseline is the profile's student as it is.
    baseline, own = cards.load(distilled / "baseline")
    assert own.borrowed is None
    assert count(baseline) - count(student.backbone) == count(baseline.get_classifier())  # type: ignore[operator]

    settings = tiny.settings("evaluate")
    context = tiny.context(tmp_path / "judged", settings, inputs={"train": teacher, "distill": distilled})
    evaluate.run(context)
    figures = json.loads((context.output / "metrics.json").read_text())
    assert figures["student"]["parameters"] == card.parameters
    assert figures["baseline"]["parameters"] == count(baseline)

    report = exported(tmp_path / "exported", teacher, distilled)
    assert report["parameters_graph"] == report["parameters_network"] == card.parameters
    assert all(check["max_relative_to_std"] < 1e-3 for check in report["checks"])


def test_no_other_method_s_projector_is_exported(teacher: Path, tmp_path: Path) -> None:
    student = line(tmp_path / "student", [{"name": "fitnet"}, {"name": "reviewkd", "channels": 8}], teacher)
    plain = create(ModelSettings(model="test_efficientnet"), classes=10, channels=1, image_size=16)
    network, _ = cards.load(student)
    card = {**json.loads((student / cards.CARD).read_text()), "input": "uint8_nhwc"}
    found = export_network(network, card, role="student", opset=20, batch_max=8)
    assert found.graph_parameters == found.network_parameters == card["parameters"] == count(plain)


def test_a_student_without_a_map_is_found_before_anything_runs() -> None:
    settings = tiny.settings(
        "distill", student={"model": "torchvision/resnet18"}, distill={"methods": [{"name": "simkd"}]}
    )
    with raises(ModelError, what="no projector"):
        distill.check(settings)


def test_no_epoch_leaves_the_projector_random_and_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "student.pt"
    bare = create(ModelSettings(model="test_byobnet"), classes=10, channels=1, image_size=16)
    torch.save(bare.state_dict(), file)
    settings = tiny.settings(
        "distill", student={"checkpoint": str(file)}, distill={"methods": [{"name": "simkd"}], "epochs": 0}
    )
    with raises(UsageError, what="random"):
        distill.check(settings)
