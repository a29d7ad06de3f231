from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.errors import ModelError, StageError, UsageError
from stages import distill, train
from stages.models import card as cards
from stages.training import checkpoint
from tests.errors import raises
from tests.stages.training import tiny

pytestmark = pytest.mark.long

METHODS = [{"name": "msdcrd", "learn_tau": True}, {"name": "kd", "weight": 0.5}]
CHANGES = {"baseline": True, "methods": METHODS, "augment": {"pad": 1, "mixup": 0.2}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = tiny.context(tmp_path_factory.mktemp("teacher"), tiny.settings("train"))
    train.run(context)
    return context.output


@pytest.fixture(scope="module")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny.settings("distill", distill=CHANGES)
    distill.check(settings)
    context = tiny.context(tmp_path_factory.mktemp("student"), settings, inputs={"train": teacher})
    distill.run(context)
    return context.output


def test_the_artefact_is_the_student_alone(distilled: Path) -> None:
    own = {"model.safetensors", "model.json", "history.csv"}
    last = {"last/model.safetensors", "last/model.json"}
    assert set(tiny.contents(distilled)) == own | last | {f"baseline/{name}" for name in own}
    for folder, role in (
        (distilled, "student"),
        (distilled / "last", "student"),
        (distilled / "baseline", "baseline"),
    ):
        network, card = cards.load(folder)
        assert card.role == role
        assert card.model == "test_byobnet"
        stored = load_file(folder / "model.safetensors")
        assert set(stored) == set(network.state_dict())
        assert sum(value.numel() for value in stored.values()) < 1.1 * card.parameters


def test_the_history_has_a_column_for_each_loss(distilled: Path) -> None:
    with (distilled / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch",
        "learning_rate",
        "train_loss",
        "train_top1",
        "val_loss",
        "val_top1",
        "loss_labels",
        "loss_msdcrd",
        "loss_kd",
    ]
    for row in rows:
        parts = sum(float(row[name]) for name in ("loss_labels", "loss_msdcrd", "loss_kd"))
        assert float(row["train_loss"]) == pytest.approx(parts, rel=1e-4)
    with (distilled / "baseline" / "history.csv").open() as file:
        assert "loss_labels" not in next(csv.DictReader(file))


def test_the_teacher_is_left_as_it_is(teacher: Path, distilled: Path) -> None:
    assert distilled != teacher
    assert cards.read_card(teacher).role == "teacher"
    assert set(tiny.contents(teacher)) == {"model.safetensors", "model.json", "history.csv"}


def test_without_a_pull_of_the_teacher_student_and_baseline_are_the_same(
    teacher: Path, tmp_path: Path
) -> None:
    """Same first weights, order and views: methods of weight 0 must leave no difference."""
    settings = tiny.settings(
        "distill",
        distill={**CHANGES, "methods": [{"name": "kd", "weight": 0.0}]},
        student={"options": {"drop_rate": 0.2}},
    )
    context = tiny.context(tmp_path, settings, inputs={"train": teacher})
    distill.run(context)
    files = tiny.contents(context.output)
    assert files["model.safetensors"] == files["baseline/model.safetensors"]


def test_without_a_method_the_student_is_the_baseline(teacher: Path, distilled: Path, tmp_path: Path) -> None:
    """And the teacher's weights are not even read."""
    settings = tiny.settings("distill", distill={**CHANGES, "baseline": False, "methods": []})
    shutil.copytree(teacher, tmp_path / "teacher", symlinks=True)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"none")
    distill.check(settings)
    context = tiny.context(tmp_path, settings, inputs={"train": tmp_path / "teacher"})
    metrics = distill.run(context)
    files, expected = tiny.contents(context.output), tiny.contents(distilled)
    assert files["model.safetensors"] == expected["baseline/model.safetensors"]
    assert files["history.csv"] == expected["baseline/history.csv"]
    assert metrics["method_parameters"] == 0


def test_a_seed_of_the_student_s_own_is_that_of_a_profile(teacher: Path, tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> bytes:
        settings = tiny.settings("distill", **changes)
        context = tiny.context(tmp_path / name, settings, inputs={"train": teacher})
        distill.run(context)
        return tiny.contents(context.output)["model.safetensors"]

    own = weights("own", distill={"seed": 5})
    assert own == weights("profile", seed=5)
    assert own != weights("other")


def test_the_last_epoch_is_left_beside_the_kept_one(teacher: Path, tmp_path: Path) -> None:
    artefacts = {}
    for keep in ("best", "last"):
        settings = tiny.settings("distill", distill={"epochs": 6, "keep": keep, "ema": 0.9})
        context = tiny.context(tmp_path / keep, settings, inputs={"train": teacher})
        metrics = distill.run(context)
        artefacts[keep] = tiny.contents(context.output)
        card = cards.read_card(context.output / "last")
        assert (card.best_epoch, card.epochs) == (6, 6)
        assert card.val_top1 == metrics["last_val_top1"]
    assert metrics["best_epoch"] == 6
    assert artefacts["best"]["last/model.safetensors"] == artefacts["last"]["model.safetensors"]
    assert artefacts["last"]["last/model.json"] == artefacts["last"]["model.json"]
    with (tmp_path / "best" / "output" / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val_top1"]) == pytest.approx(metrics["last_val_top1"], abs=1e-3)


def test_the_cost_of_a_method_is_reported(teacher: Path, tmp_path: Path) -> None:
    settings = tiny.settings("distill", distill={"epochs": 1, "methods": [{"name": "msdcrd"}]})
    metrics = distill.run(tiny.context(tmp_path, settings, inputs={"train": teacher}))
    student, teacher_card = cards.load(tmp_path / "output")[1], cards.read_card(teacher)
    assert metrics["parameters"] == student.parameters < teacher_card.parameters
    assert metrics["method_parameters"] > 0, "a projector from the student's map to the teacher's"
    if metrics["device"] == "cpu":
        assert metrics["peak_memory_bytes"] is None


def test_an_empty_list_of_methods_needs_no_baseline() -> None:
    with pytest.raises(ValidationError, match="the baseline already"):
        tiny.settings("distill", distill={"methods": [], "baseline": True})


def test_progress_covers_both_trainings(teacher: Path, tmp_path: Path) -> None:
    recorder = tiny.Recorder()
    settings = tiny.settings("distill", distill={"baseline": True})
    metrics = distill.run(tiny.context(tmp_path, settings, inputs={"train": teacher}, progress=recorder))
    done = [entry[0] for entry in recorder.updates]
    assert done == sorted(done)
    assert {entry[1] for entry in recorder.updates} == {done[-1]}
    assert metrics["baseline_best_epoch"] >= 1
    json.dumps(metrics)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_resumed_distillation_ends_like_an_undisturbed_one(
    teacher: Path, distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Stopped within the student's training and within the baseline's."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    settings = tiny.settings("distill", distill=CHANGES)
    total = 2 * 2 * 128
    with pytest.raises(tiny.Stopped):
        distill.run(
            tiny.context(tmp_path, settings, inputs={"train": teacher}, progress=tiny.Recorder(share * total))
        )
    shutil.rmtree(tmp_path / "output")
    recorder = tiny.Recorder()
    context = tiny.context(tmp_path, settings, inputs={"train": teacher}, progress=recorder)
    distill.run(context)
    assert tiny.contents(context.output) == tiny.contents(distilled)
    assert any("training resumed after epoch" in note for note in recorder.notes)
    assert recorder.updates[0][0] >= (128 if share < 0.5 else 256)


def test_the_teacher_changes_the_student(teacher: Path, distilled: Path) -> None:
    student = load_file(distilled / "model.safetensors")
    alone = load_file(distilled / "baseline" / "model.safetensors")
    assert any(not torch.equal(student[name], alone[name]) for name in student)


def test_no_epoch_with_random_weights_is_refused() -> None:
    with raises(UsageError, what="random"):
        distill.check(tiny.settings("distill", distill={"epochs": 0}))


def test_a_stage_that_the_student_lacks_is_found_before_anything_runs() -> None:
    methods = [{"name": "msdcrd", "layers": [99]}]
    with raises(ModelError, what="99"):
        distill.check(tiny.settings("distill", distill={"methods": methods}))


def test_a_teacher_of_other_images_is_refused(teacher: Path, tmp_path: Path) -> None:
    settings = tiny.settings("distill", data={"image_size": 24})
    with raises(StageError, what="other images"):
        distill.run(tiny.context(tmp_path, settings, inputs={"train": teacher}))
