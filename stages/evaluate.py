"""Evaluate teacher, student and baseline on the test images, which no training uses.

The evaluation runs in float32 for any training precision, because its figures are compared with those of
exported files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics
from stages.data.load import load
from stages.models import card as cards
from stages.models.macs import macs
from stages.statistics.intervals import mcnemar, paired_bootstrap, verdict, wilson_interval
from stages.training import fabric, judge
from stages.training.calibration import expected_calibration_error
from stages.training.supply import Supply

DIGITS = 6
"""Decimals of all figures, so that machine-dependent last bits do not change the artefact."""


def run(context: Context) -> Metrics:
    """Write `metrics.json` (docs/reference/artefacts.md) from the artefacts of `train` and `distill`."""
    settings = context.settings
    data = load(settings.data)
    for note in data.notes:
        context.progress.note(note)
    folders = {"teacher": context.inputs["train"], "student": context.inputs["distill"]}
    if (context.inputs["distill"] / "baseline" / cards.CARD).is_file():
        folders["baseline"] = context.inputs["distill"] / "baseline"
    total = len(folders) * len(data.test.labels)

    def progress_from(before: int, model: str) -> Callable[[int], None]:
        return lambda done: context.progress.update(before + done, total, unit="images", model=model)

    compute = replace(fabric.resolve(settings.compute), devices=1)
    labels = np.asarray(data.test.labels, dtype=np.int64)
    results: dict[str, dict[str, Any]] = {}
    with fabric.reproducible(compute, seed=0, true_fp32=True):
        test = Supply(data.test, compute.device)
        for nth, (role, folder) in enumerate(folders.items()):
            network, card = cards.load(folder)
            logits = judge.logits_by_card(
                network,
                card,
                test,
                compute,
                batch_size=settings.evaluate.batch_size,
                tell=progress_from(nth * len(labels), role),
            )
            results[role] = _figures(logits, labels, data.classes, settings.evaluate.ece_bins)
            results[role]["parameters"] = card.parameters
            results[role]["macs"] = macs(network, card.preprocessing.side, card.preprocessing.channels)
    teacher = np.array(results["teacher"]["predictions"])
    for role, figures in results.items():
        same = np.array(figures["predictions"]) == teacher
        figures["agreement_with_teacher"] = None if role == "teacher" else _per_cent(same.mean())
    report = {
        "schema_version": 1,
        "images": len(labels),
        "classes": list(data.classes),
        "teacher": results["teacher"],
        "student": results["student"],
        "baseline": results.get("baseline"),
        "distillation": _gain(results, labels),
    }
    write_json(context.output / "metrics.json", report)
    return _summary(report)


def _figures(logits: Tensor, labels: np.ndarray, classes: tuple[str, ...], ece_bins: int) -> dict[str, Any]:
    """Compute a network's figures.

    Args:
        logits: (n, classes), float32.
        labels: The true labels, int64 (n,).
        classes: Class names, by label.
        ece_bins: Bins of the expected calibration error.
    """
    truth = torch.from_numpy(labels)
    image_count, class_count = len(labels), len(classes)
    # In float64: a sum of logarithms over a whole split.
    probabilities = logits.double().softmax(dim=1)
    predictions = logits.argmax(dim=1)
    correct = (predictions == truth).numpy()
    confusion = np.zeros((class_count, class_count), dtype=np.int64)
    np.add.at(confusion, (labels, predictions.numpy()), 1)
    top5 = None
    if class_count > 5:
        best = logits.topk(5, dim=1).indices
        top5 = _per_cent((best == truth[:, None]).any(dim=1).double().mean().item())
    images = confusion.sum(axis=1)
    low, high = wilson_interval(int(correct.sum()), image_count)
    confidence = probabilities.gather(1, predictions[:, None])[:, 0].numpy()
    return {
        "top1": _per_cent(correct.mean()),
        "top5": top5,
        "top1_ci": [_per_cent(low), _per_cent(high)],
        "loss": round(functional.cross_entropy(logits.double(), truth).item(), DIGITS),
        "ece": round(expected_calibration_error(confidence, correct, ece_bins), DIGITS),
        "per_class": [
            {
                "class": name,
                "images": int(images[label]),
                "top1": _per_cent(confusion[label, label] / images[label]) if images[label] else None,
            }
            for label, name in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
        "predictions": predictions.tolist(),
    }


def _gain(results: dict[str, dict[str, Any]], labels: np.ndarray) -> dict[str, Any] | None:
    """Compare the student with the same student trained without a teacher, image by image."""
    if "baseline" not in results:
        return None
    student = np.array(results["student"]["predictions"]) == labels
    baseline = np.array(results["baseline"]["predictions"]) == labels
    low, high = paired_bootstrap(student, baseline)
    return {
        "gain_points": _per_cent(student.mean() - baseline.mean()),
        "gain_ci": [_per_cent(low), _per_cent(high)],
        "p_value": round(mcnemar(student, baseline), DIGITS),
        "verdict": verdict(low, high),
    }


def _summary(report: dict[str, Any]) -> Metrics:
    """Return the figures for the stage's line in the run's table."""
    metrics: Metrics = {"images": report["images"]}
    for role in ("teacher", "student", "baseline"):
        if report[role] is not None:
            metrics[f"{role}_top1"] = report[role]["top1"]
    metrics["agreement_with_teacher"] = report["student"]["agreement_with_teacher"]
    if report["distillation"] is not None:
        metrics["distillation_gain_points"] = report["distillation"]["gain_points"]
        metrics["distillation_verdict"] = report["distillation"]["verdict"]
    return metrics


def _per_cent(share: float | np.floating[Any]) -> float:
    return round(100.0 * float(share), DIGITS)
