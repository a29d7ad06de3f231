"""The shipped pairs of CIFAR-100: their networks can be made, their recipes are those that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.profile.loading import load, shipped_profiles
from stages.models.create import check
from tests.command import ROOT

pytestmark = pytest.mark.long

PAIRS = [path for path in shipped_profiles() if path.parent.name == "cifar100"]
PAGE = (ROOT / "docs" / "guides" / "cifar.md").read_text(encoding="utf-8")


def stems(size: int) -> list[str]:
    return [path.stem for path in PAIRS if load(path).value("data.image_size") == size]


def settings(name: str) -> Any:
    return load(f"cifar100/{name}").settings(["data", "teacher", "student", "train", "distill"])


def test_there_are_twelve_pairs_a_recipe() -> None:
    assert len(stems(32)) == len(stems(224)) == 12


@pytest.mark.parametrize("name", stems(32))
def test_pairs_of_32_pixels(name: str) -> None:
    profile = settings(name)
    for network in (profile.teacher, profile.student):
        assert network.model.startswith("cifar_")
        check(network, classes=100, channels=3, image_size=32)
    slow = any(word in profile.student.model for word in ("mobile", "shuffle"))
    assert profile.train.learning_rate == 0.05
    assert profile.distill.learning_rate == (0.01 if slow else 0.05)
    for recipe in (profile.train, profile.distill):
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (240, 64, "momentum")
        assert (recipe.schedule, recipe.decay_epochs) == ("multistep", [150, 180, 210])
        assert (recipe.momentum, recipe.weight_decay, recipe.decay_rate) == (0.9, 5e-4, 0.1)
        assert (recipe.augment.pad, recipe.augment.flip, recipe.keep) == (4, True, "last")


@pytest.mark.parametrize("name", stems(224))
def test_pairs_of_224_pixels(name: str) -> None:
    profile = settings(name)
    assert not profile.student.model.startswith("cifar_")
    check(profile.student, classes=100, channels=3, image_size=224)
    tokens = not profile.student.model.startswith(("resnet", "mobilenet"))
    distill = profile.distill
    told = (distill.optimizer, distill.learning_rate, distill.weight_decay, distill.min_learning_rate)
    assert told == (("adamw", 5e-4, 0.05, 1e-5) if tokens else ("sgd", 0.05, 2e-3, 1e-3))
    assert (distill.epochs, distill.batch_size, distill.label_smoothing) == (300, 128, 0.1)
    assert (distill.clip_grad, distill.augment.cutmix) == ((5.0, 1.0) if tokens else (None, 0.0))


@pytest.mark.parametrize(
    "model",
    ["swin_tiny_patch4_window7_224", "vit_small_patch16_224", "mixer_b16_224", "convnext_tiny"],
)
def test_the_teachers_of_224_pixels(model: str) -> None:
    (first, *_) = (s.teacher for s in map(settings, stems(224)) if s.teacher.model == model)
    check(first, classes=100, channels=3, image_size=224)


def test_a_profile_in_a_subfolder_is_found_by_its_name() -> None:
    place = ROOT / "profiles" / "cifar100" / "vgg13_to_vgg8.yaml"
    for name in ("vgg13_to_vgg8", "cifar100/vgg13_to_vgg8", "profiles/cifar100/vgg13_to_vgg8.yaml"):
        assert load(name).path.resolve() == place


def test_every_pair_is_found_by_its_bare_name() -> None:
    assert [load(path.stem).path for path in PAIRS] == PAIRS


def test_what_is_only_there_to_be_extended_is_no_profile_but_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not any(path.name.startswith("_") for path in shipped_profiles())
    models = "teacher: {model: cifar_vgg13}\nstudent: {model: cifar_resnet8}\n"
    Path("mine.yaml").write_text("extends: cifar100/_crd\n" + models, encoding="utf-8")
    assert load("mine").value("distill.epochs") == 240
    with pytest.raises(UsageError):
        load("other/vgg13_to_vgg8")


def test_the_page_lists_every_pair_and_network() -> None:
    from stages.models.cifar.registry import NETWORKS

    words = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    assert {path.stem for path in PAIRS} <= words
    assert set(NETWORKS) <= words
