"""Summarise the runs: the figures of each run and of each method over its seeds, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from stages.comparing.judging import Predictions
from stages.statistics.crossed import Gain, gain, holm
from stages.statistics.intervals import verdict, wilson_interval

DIGITS = 6
EPOCHS = ("best", "last")
LEVEL = 0.05


def comparison(
    runs: Sequence[Mapping[str, Any]], predictions: Predictions, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `comparison.json` (docs/reference/artefacts.md).

    Args:
        runs: Every run with `label`, `seed`, `methods`, `key`, `digest`, `metrics` of its stage, and `failed`
            (None, or why).
        predictions: Those of the runs that did not fail, in the same order.
        about: `split`, `reference` (the label that the others are compared with) and `unfit`.
    """
    done = [run for run in runs if run["failed"] is None]
    places = {(run["label"], run["seed"]): index for index, run in enumerate(done)}
    reference = about["reference"]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    entries = [_run(run, predictions, places) for run in runs]
    methods = [_method(label, entries, runs, reference) for label in labels]
    families: dict[str, dict[str, Gain]] = {epochs: {} for epochs in EPOCHS}
    for method in methods:
        shared = [seed for seed in method["seeds"] if (reference, seed) in places]
        method["seeds_compared"] = [] if method["label"] == reference else shared
        for epochs in EPOCHS:
            if method["seeds_compared"]:
                correct = getattr(predictions, epochs) == predictions.labels
                own, others = (
                    correct[[places[label, seed] for seed in shared]]
                    for label in (method["label"], reference)
                )
                families[epochs][method["label"]] = gain(own, others)
    for epochs, gains in families.items():
        adjusted = holm([each.p_value for each in gains.values()])
        for (label, method_gain), p_holm in zip(gains.items(), adjusted, strict=True):
            method = next(each for each in methods if each["label"] == label)
            method[epochs] |= _gain(method_gain, p_holm)
    methods.sort(key=lambda method: _rank(method, reference))
    count = len(predictions.labels)
    document: dict[str, Any] = {
        "schema_version": 1,
        "split": about["split"],
        "images": count,
        "classes": predictions.classes,
        "reference": reference,
        "seeds": sorted({run["seed"] for run in runs}),
        "teacher": _teacher(predictions),
        "methods": methods,
        "runs": entries,
        "unfit": list(about["unfit"]),
    }
    document["answer"] = answer(document)
    return document


def answer(document: Mapping[str, Any]) -> dict[str, Any]:
    """Answer whether distillation was worth it.

    Yes: a method gained with a p-value below 0.05 after Holm's adjustment for the number of methods; the
    answer is about the method that gained most. No: the whole interval of every method is below 0.

    Returns:
        `verdict` (yes, no, cannot tell), the `method` that the answer is about, and `text`.
    """
    alone = document["reference"] == ALONE
    rival = "the student alone" if alone else document["reference"]
    question = "Did distillation pay?" if alone else f"Is a method better than {rival}?"
    judged = [method for method in document["methods"] if method["best"]["gain_points"] is not None]
    if not judged:
        return {
            "verdict": "cannot tell",
            "method": None,
            "text": f"{question} Cannot tell: nothing to compare.",
        }
    sure = [method for method in judged if _is_sure_gain(method["best"])]
    best = (sure or judged)[0]
    if sure:
        verdict_word = "yes"
    elif all(method["best"]["verdict"] == "worse" for method in judged):
        verdict_word = "no"
    else:
        verdict_word = "cannot tell"
    figures = best["best"]
    low, high = figures["gain_ci"]
    seeds = len(best["seeds_compared"])
    text = (
        f"{question} {verdict_word.capitalize()}: {best['label']} {figures['gain_points']:+.2f} points "
        f"[{low:.2f}, {high:.2f}] over {rival} ({seeds} seed{'s' * (seeds != 1)}, {document['images']:,} "
        f"{document['split']} images"
    )
    if len(judged) > 1:
        text += f"; p = {figures['p_holm']:.2g} after Holm's adjustment for {len(judged)} methods"
    text += "; another seed may differ)." if seeds == 1 else ")."
    return {"verdict": verdict_word, "method": best["label"], "text": text}


def _is_sure_gain(figures: Mapping[str, Any]) -> bool:
    return bool(figures["gain_points"] > 0 and figures["p_holm"] < LEVEL)


ALONE = "student alone"
"""The label of the runs without a method."""


def _run(
    run: Mapping[str, Any], predictions: Predictions, places: Mapping[tuple[str, int], int]
) -> dict[str, Any]:
    metrics = run["metrics"]
    entry = {
        "label": run["label"],
        "seed": run["seed"],
        "key": run["key"],
        "digest": run["digest"],
        "failed": run["failed"],
        "top1": None,
        "last_top1": None,
        "agreement_with_teacher": None,
        "val_top1": metrics.get("val_top1"),
        "last_val_top1": metrics.get("last_val_top1"),
        "best_epoch": metrics.get("best_epoch"),
        # 0 where an interrupted run went on after its last epoch.
        "seconds_per_epoch": metrics.get("seconds_per_epoch") or None,
        "parameters": metrics.get("parameters"),
        "method_parameters": metrics.get("method_parameters"),
        "peak_memory_bytes": metrics.get("peak_memory_bytes"),
        "device": metrics.get("device"),
    }
    if run["failed"] is None:
        place = places[run["label"], run["seed"]]
        best, last = predictions.best[place], predictions.last[place]
        entry["top1"] = _per_cent((best == predictions.labels).mean())
        entry["last_top1"] = _per_cent((last == predictions.labels).mean())
        entry["agreement_with_teacher"] = _per_cent((best == predictions.teacher).mean())
    return entry


def _method(
    label: str, entries: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], reference: str
) -> dict[str, Any]:
    own = [entry for entry in entries if entry["label"] == label]
    done = [entry for entry in own if entry["failed"] is None]
    seconds = _middle(done)
    usual = _middle([entry for entry in entries if entry["label"] == reference])
    memory = [run["peak_memory_bytes"] for run in done if run["peak_memory_bytes"] is not None]
    return {
        "label": label,
        "methods": next(list(run["methods"]) for run in runs if run["label"] == label),
        "seeds": [run["seed"] for run in done],
        "failed": len(own) - len(done),
        "best": _spread([run["top1"] for run in done], [run["val_top1"] for run in done]),
        "last": _spread([run["last_top1"] for run in done], [run["last_val_top1"] for run in done]),
        "agreement_with_teacher": _mean([run["agreement_with_teacher"] for run in done]),
        "seconds_per_epoch": seconds,
        "times_reference": round(seconds / usual, 3) if seconds and usual else None,
        "parameters": done[0]["parameters"] if done else None,
        "method_parameters": done[0]["method_parameters"] if done else None,
        "peak_memory_bytes": max(memory) if memory else None,
    }


def _spread(top1: Sequence[float], val_top1: Sequence[float]) -> dict[str, Any]:
    """Return mean and standard deviation over the seeds; the fields of the gain are null."""
    return {
        "top1": _mean(top1),
        "top1_sd": round(stdev(top1), DIGITS) if len(top1) > 1 else None,
        "val_top1": _mean(val_top1),
        "gain_points": None,
        "gain_ci": None,
        "p_value": None,
        "p_holm": None,
        "verdict": None,
        "over_seeds": None,
        "over_images": None,
    }


def _gain(method_gain: Gain, p_holm: float) -> dict[str, Any]:
    over_seeds = None
    if method_gain.seeds_interval is not None and method_gain.seeds_p is not None:
        over_seeds = {
            "gain_ci": _points(method_gain.seeds_interval),
            "p_value": round(method_gain.seeds_p, DIGITS),
        }
    return {
        "gain_points": _per_cent(method_gain.mean),
        "gain_ci": _points(method_gain.interval),
        "p_value": round(method_gain.p_value, DIGITS),
        "p_holm": round(p_holm, DIGITS),
        "verdict": verdict(*method_gain.interval),
        "over_seeds": over_seeds,
        "over_images": {"gain_ci": _points(method_gain.images_interval)},
    }


def _teacher(predictions: Predictions) -> dict[str, Any]:
    correct = predictions.teacher == predictions.labels
    return {
        "top1": _per_cent(correct.mean()),
        "top1_ci": _points(wilson_interval(int(correct.sum()), len(correct))),
        "parameters": predictions.teacher_parameters,
    }


def _rank(method: Mapping[str, Any], reference: str) -> tuple[int, float]:
    """Sort the reference first, then by gain; methods without a gain are last."""
    if method["label"] == reference:
        return 0, 0.0
    points = method["best"]["gain_points"]
    return (2, 0.0) if points is None else (1, -points)


def _middle(runs: Sequence[Mapping[str, Any]]) -> float | None:
    seconds = [run["seconds_per_epoch"] for run in runs if run["seconds_per_epoch"]]
    return round(median(seconds), 3) if seconds else None


def _mean(values: Sequence[float]) -> float | None:
    return round(mean(values), DIGITS) if values else None


def _per_cent(share: float | np.floating[Any]) -> float:
    return round(100.0 * float(share), DIGITS)


def _points(interval: tuple[float, float]) -> list[float]:
    return [_per_cent(interval[0]), _per_cent(interval[1])]
