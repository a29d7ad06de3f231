from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from stages.data.preprocessing import SCALE, Preprocessing
from stages.models.borrowed import BorrowedHead, BorrowedHeadSpec, borrow, take_apart
from stages.models.card import ModelCard, load, rebuild, save
from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.resampling import AreaResample
from stages.models.settings import ModelSettings
from tests.errors import raises

STUDENTS: list[tuple[str, dict[str, Any], str]] = [
    ("test_efficientnet", {}, "standard"),
    ("test_byobnet", {}, "standard"),
    ("mobilenetv3_small_050", {}, "small"),  # a convolution and an activation between pooling and classifier
    ("test_convnext", {}, "standard"),  # a norm after the pooling
    ("test_vit", {}, "standard"),  # a class token
    ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}, "standard"),
]
by_student = pytest.mark.parametrize(
    ("name", "options", "stem"), STUDENTS, ids=[case[0] for case in STUDENTS]
)


def network(
    name: str, options: dict[str, Any] | None = None, stem: str = "standard", seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    settings = ModelSettings.model_validate({"model": name, "options": options or {}, "stem": stem})
    return create(settings, classes=7, channels=1, image_size=32)


def teacher() -> nn.Module:
    """Return a teacher with a final map of 96x2x2 for images of 64 pixels."""
    return network("test_resnet", seed=1)


def borrowed(student: nn.Module, reduction: int = 2) -> BorrowedHead:
    return borrow(student, teacher(), reduction=reduction, image_sizes=(32, 64), channels=1)


def images(seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


@by_student
def test_the_logits_are_the_teacher_s_classifier_on_the_projected_map(
    name: str, options: dict[str, Any], stem: str
) -> None:
    student = network(name, options, stem)
    plain = copy.deepcopy(student).eval()
    joined = borrowed(student).eval()
    with torch.no_grad():
        own = Observer(plain)(images()).map
        pooled = AreaResample((own.shape[2], own.shape[3]), (min(own.shape[2], 2), min(own.shape[3], 2)))(own)
        projected = joined.projector(pooled)
        head = teacher().get_classifier()  # type: ignore[operator]
        expected = head(projected.mean((2, 3)))
        assert torch.allclose(joined(images()), expected, atol=1e-5)


@by_student
def test_it_has_the_interface_of_other_networks(name: str, options: dict[str, Any], stem: str) -> None:
    student = network(name, options, stem)
    plain = Observer(copy.deepcopy(student).eval(), Needs(ends=True))
    joined = borrowed(student).eval()
    observer = Observer(joined, Needs(ends=True))
    with torch.no_grad():
        seen, before = observer(images()), plain(images())
    assert torch.equal(seen.logits, joined(images()))
    assert torch.equal(seen.embedding, seen.map.mean((2, 3)))
    assert [end.shape for end in seen.ends] == [end.shape for end in before.ends]
    spec = observer.spec(32, 1)
    assert spec.head_is_linear_on_pooled
    assert spec.map[0] == 96
    assert torch.allclose(observer.local_logits(seen.embedding[:, None])[:, 0], seen.logits, atol=1e-5)


@by_student
def test_nothing_of_the_student_s_own_head_is_left_and_all_else_learns(
    name: str, options: dict[str, Any], stem: str
) -> None:
    joined = borrowed(network(name, options, stem)).eval()
    joined(images()).sum().backward()
    assert {key for key, value in joined.named_parameters() if value.grad is None} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert not joined.classifier.weight.requires_grad


@by_student
def test_what_is_saved_comes_back(name: str, options: dict[str, Any], stem: str, tmp_path: Any) -> None:
    joined = borrowed(network(name, options, stem))
    joined(images())  # statistics that are not those of a fresh network
    card = card_of(joined, name, options, stem)
    save(tmp_path, joined, card)
    loaded, read = load(tmp_path)
    assert read == card
    assert isinstance(loaded, BorrowedHead)
    with torch.no_grad():
        assert torch.equal(loaded(images()), joined.eval()(images()))
    assert not loaded.classifier.weight.requires_grad


def card_of(joined: BorrowedHead, name: str, options: dict[str, Any], stem: str) -> ModelCard:
    return ModelCard(
        role="student",
        model=name,
        options={key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
        stem=stem,
        classes=tuple("abcdefg"),
        parameters=1,
        best_epoch=1,
        epochs=1,
        val_top1=None,
        preprocessing=Preprocessing(32, 1, "bilinear", True, SCALE, (0.3,), (0.37,)),
        borrowed=joined.facts,
    )


def test_the_card_has_the_key_borrowed_only_for_such_students() -> None:
    joined = borrowed(network("test_efficientnet"))
    card = card_of(joined, "test_efficientnet", {}, "standard")
    assert card.as_json()["borrowed"] == {
        "channels": 96,
        "height": 2,
        "width": 2,
        "reduction": 2,
        "bias": True,
    }
    assert ModelCard.from_json(card.as_json()) == card
    plain = {key: value for key, value in card.as_json().items() if key != "borrowed"}
    assert ModelCard.from_json(plain).borrowed is None
    assert "borrowed" not in ModelCard.from_json(plain).as_json()
    assert not isinstance(rebuild(ModelCard.from_json(plain)), BorrowedHead)


@pytest.mark.parametrize(("reduction", "inner"), [(1, 96), (2, 48), (1000, 1)])
def test_the_projector_is_a_bottleneck(reduction: int, inner: int) -> None:
    joined = borrowed(network("test_efficientnet"), reduction)
    widths = [
        (layer.in_channels, layer.out_channels) for layer in joined.projector if isinstance(layer, nn.Conv2d)
    ]
    assert widths == [(256, inner), (inner, inner), (inner, 96)]


def test_the_student_is_left_in_its_mode_and_its_statistics_as_they_were() -> None:
    student = network("test_byobnet")
    before = copy.deepcopy(student.state_dict())
    joined = borrowed(student)
    assert joined.training
    assert joined.backbone.training
    state = joined.backbone.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert set(before) - set(state) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050"])
def test_a_teacher_whose_head_is_more_than_a_linear_layer_lends_nothing(name: str) -> None:
    lender = network(name, stem="small" if name != "test_vit" else "standard")
    with raises(ModelError, what="cannot be borrowed"):
        borrow(network("test_byobnet"), lender, reduction=2, image_sizes=(32, 32), channels=1)


class Folding(nn.Module):
    """A network whose head changes the map before its pooling, like VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.further = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 7)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.body(images)
        return maps

    def forward_head(self, maps: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.pool(self.further(maps)).flatten(1))
        return logits


def test_a_student_that_does_not_show_its_map_is_refused() -> None:
    for student in (network("torchvision/squeezenet1_1"), Folding()):
        with raises(ModelError, what="no projector"):
            take_apart(student, image_size=32, channels=1)


class Nested(Folding):
    """A network whose head has nested parts."""

    def __init__(self) -> None:
        super().__init__()
        self.further = nn.Identity()  # type: ignore[assignment]
        self.fc = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 7))))  # type: ignore[assignment]


def test_a_head_of_nested_parts_is_cut_off_as_one() -> None:
    student = Nested()
    take_apart(student, image_size=8, channels=1)
    assert isinstance(student.fc, nn.Identity)
    assert list(student.fc.children()) == []
    assert isinstance(student.body, nn.Conv2d)
    assert {key.split(".")[0] for key in student.state_dict()} == {"body"}


def test_the_classifier_is_a_copy_of_the_teacher_s() -> None:
    lender = network("test_resnet", seed=1)
    head = lender.get_classifier()  # type: ignore[operator]
    joined = borrow(network("test_byobnet"), lender, reduction=2, image_sizes=(32, 64), channels=1)
    assert joined.facts == BorrowedHeadSpec(96, 2, 2, 2, True)
    assert torch.equal(joined.classifier.weight, head.weight)
    assert torch.equal(joined.classifier.bias, head.bias)
    assert joined.classifier.weight.data_ptr() != head.weight.data_ptr()
