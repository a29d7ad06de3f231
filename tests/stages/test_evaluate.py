from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from stages import distill, evaluate, train
from stages.data.load import load
from stages.models import card as cards
from tests.stages.training import tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    teacher = tiny.context(tmp_path_factory.mktemp("teacher"), tiny.settings("train"))
    train.run(teacher)
    artefacts = {"train": teacher.output}
    settings = tiny.settings("distill", distill={"baseline": True, "epochs": 4})
    student = tiny.context(tmp_path_factory.mktemp("student"), settings, inputs=artefacts)
    distill.run(student)
    return {**artefacts, "distill": student.output}


@pytest.fixture(scope="module")
def report(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    context = tiny.context(tmp_path_factory.mktemp("judged"), tiny.settings("evaluate"), inputs=inputs)
    metrics = evaluate.run(context)
    assert set(tiny.contents(context.output)) == {"metrics.json"}
    document: dict[str, Any] = json.loads((context.output / "metrics.json").read_text())
    assert metrics["student_top1"] == document["student"]["top1"]
    assert metrics["distillation_verdict"] == document["distillation"]["verdict"]
    return document


def _logits_and_labels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels of the test split; the arithmetic outside the network is float64."""
    data = load(tiny.settings("evaluate").data)
    network, card = cards.load(folder)
    facts = card.preprocessing
    images = data.test.images.batch(np.arange(len(data.test.labels)))
    shown = (images * facts.scale - np.array(facts.mean)) / np.array(facts.std)
    with torch.no_grad():
        logits = network(torch.from_numpy(shown.astype(np.float32)).permute(0, 3, 1, 2))
    return logits.double().numpy(), data.test.labels


@pytest.mark.parametrize("role", ["teacher", "student", "baseline"])
def test_figures_are_those_of_a_plain_computation(
    inputs: dict[str, Path], report: dict[str, Any], role: str
) -> None:
    folders = {
        "teacher": inputs["train"],
        "student": inputs["distill"],
        "baseline": inputs["distill"] / "baseline",
    }
    logits, labels = _logits_and_labels(folders[role])
    figures = report[role]
    predictions = logits.argmax(axis=1)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert figures["predictions"] == predictions.tolist()
    assert figures["top1"] == pytest.approx(100 * (predictions == labels).mean(), abs=1e-5)
    assert figures["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5), abs=1e-5)
    assert figures["loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-4)
    assert figures["confusion"] == confusion_matrix(labels, predictions).tolist()
    low, high = figures["top1_ci"]
    assert low < figures["top1"] < high
    assert 0.0 <= figures["ece"] <= 1.0
    for label, entry in enumerate(figures["per_class"]):
        of_class = labels == label
        assert entry["class"] == str(label)
        assert entry["images"] == of_class.sum()
        assert entry["top1"] == pytest.approx(100 * (predictions[of_class] == label).mean(), abs=1e-5)
    assert figures["parameters"] == cards.read_card(folders[role]).parameters
    assert figures["macs"] > 0


def test_agreement_is_the_share_of_equal_predictions(report: dict[str, Any]) -> None:
    teacher = np.array(report["teacher"]["predictions"])
    assert report["teacher"]["agreement_with_teacher"] is None
    for role in ("student", "baseline"):
        same = (np.array(report[role]["predictions"]) == teacher).mean()
        assert report[role]["agreement_with_teacher"] == pytest.approx(100 * same, abs=1e-5)


def test_the_gain_is_student_minus_baseline(report: dict[str, Any]) -> None:
    gain = report["distillation"]
    assert gain["gain_points"] == pytest.approx(
        report["student"]["top1"] - report["baseline"]["top1"], abs=1e-4
    )
    low, high = gain["gain_ci"]
    assert low <= gain["gain_points"] <= high
    expected = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
    assert gain["verdict"] == expected
    assert 0.0 <= gain["p_value"] <= 1.0


def test_a_teacher_against_itself_gains_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(inputs["train"], twin)
    shutil.copytree(inputs["train"], twin / "baseline")
    context = tiny.context(
        tmp_path, tiny.settings("evaluate"), inputs={"train": inputs["train"], "distill": twin}
    )
    evaluate.run(context)
    report = json.loads((context.output / "metrics.json").read_text())
    assert report["distillation"] == {
        "gain_points": 0.0,
        "gain_ci": [0.0, 0.0],
        "p_value": 1.0,
        "verdict": "cannot tell",
    }
    assert report["student"]["agreement_with_teacher"] == 100.0


def test_without_a_baseline_there_is_no_verdict(inputs: dict[str, Path], tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(inputs["distill"], student, ignore=shutil.ignore_patterns("baseline"))
    context = tiny.context(
        tmp_path, tiny.settings("evaluate"), inputs={"train": inputs["train"], "distill": student}
    )
    evaluate.run(context)
    report = json.loads((context.output / "metrics.json").read_text())
    assert report["baseline"] is None
    assert report["distillation"] is None


def test_neither_batch_size_nor_training_precision_changes_the_figures(
    inputs: dict[str, Path], report: dict[str, Any], tmp_path: Path
) -> None:
    settings = tiny.settings("evaluate", evaluate={"batch_size": 37}, compute={"precision": "bf16"})
    recorder = tiny.Recorder()
    context = tiny.context(tmp_path, settings, inputs=inputs, progress=recorder)
    evaluate.run(context)
    other = json.loads((context.output / "metrics.json").read_text())
    for role in ("teacher", "student", "baseline"):
        assert other[role]["predictions"] == report[role]["predictions"]
        assert other[role]["loss"] == pytest.approx(report[role]["loss"], abs=1e-5)
    assert recorder.updates[-1][0] == recorder.updates[-1][1] == 3 * report["images"]
