"""What the runs come to: figures of each run, of each method over its seeds, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from stages.comparing.judging import Answers
from stages.statistics.crossed import Gain, gain, holm
from stages.statistics.intervals import verdict, wilson_interval

DIGITS = 6
EPOCHS = ("best", "last")
LEVEL = 0.05


def comparison(
    runs: Sequence[Mapping[str, Any]], answers: Answers, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `comparison.json` (docs/reference/artefacts.md).

    runs: every run with `label`, `seed`, `methods`, `key`, `digest`, `metrics` of its stage, and `failed`
        (None, or why); `answers` holds those that did not fail, in order.
    about: `split`, `reference` (the label that the others are compared with) and `unfit`.
    """
    done = [run for run in runs if run["failed"] is None]
    places = {(run["label"], run["seed"]): index for index, run in enumerate(done)}
    reference = about["reference"]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    told = [_run(run, answers, places) for run in runs]
    methods = [_method(label, told, runs, reference) for label in labels]
    families: dict[str, dict[str, Gain]] = {epochs: {} for epochs in EPOCHS}
    for method in methods:
        shared = [seed for seed in method["seeds"] if (reference, seed) in places]
        method["seeds_compared"] = [] if method["label"] == reference else shared
        for epochs in EPOCHS:
            if method["seeds_compared"]:
                right = getattr(answers, epochs) == answers.labels
                its, others = (
                    right[[places[label, seed] for seed in shared]] for label in (method["label"], reference)
                )
                families[epochs][method["label"]] = gain(its, others)
    for epochs, gains in families.items():
        adjusted = holm([one.p_value for one in gains.values()])
        for (label, one), p_holm in zip(gains.items(), adjusted, strict=True):
            next(method for method in methods if method["label"] == label)[epochs] |= _gain(one, p_holm)
    methods.sort(key=lambda method: _rank(method, reference))
    count = len(answers.labels)
    found: dict[str, Any] = {
        "schema_version": 1,
        "split": about["split"],
        "images": count,
        "classes": answers.classes,
        "reference": reference,
        "seeds": sorted({run["seed"] for run in runs}),
        "teacher": _teacher(answers),
        "methods": methods,
        "runs": told,
        "unfit": list(about["unfit"]),
    }
    found["answer"] = answer(found)
    return found


def answer(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whether it paid: `verdict` (yes, no, cannot tell), the `method` that it is about, and `text`.

    Yes: a method gained with a p-value below 0.05 after Holm's adjustment for their number; the one that
    gained most is named. No: of every method the whole interval lies below 0.
    """
    alone = found["reference"] == ALONE
    rival = "the student alone" if alone else found["reference"]
    question = "Did distillation pay?" if alone else f"Is a method better than {rival}?"
    judged = [method for method in found["methods"] if method["best"]["gain_points"] is not None]
    if not judged:
        return {
            "verdict": "cannot tell",
            "method": None,
            "text": f"{question} Cannot tell: nothing to compare.",
        }
    sure = [one for one in judged if one["best"]["gain_points"] > 0 and one["best"]["p_holm"] < LEVEL]
    best = (sure or judged)[0]
    if sure:
        said = "yes"
    else:
        said = "no" if all(one["best"]["verdict"] == "worse" for one in judged) else "cannot tell"
    figures = best["best"]
    low, high = figures["gain_ci"]
    seeds = len(best["seeds_compared"])
    text = (
        f"{question} {said.capitalize()}: {best['label']} {figures['gain_points']:+.2f} points "
        f"[{low:.2f}, {high:.2f}] over {rival} ({seeds} seed{'s' * (seeds != 1)}, {found['images']:,} "
        f"{found['split']} images"
    )
    if len(judged) > 1:
        text += f"; p = {figures['p_holm']:.2g} after Holm's adjustment for {len(judged)} methods"
    text += "; another seed may differ)." if seeds == 1 else ")."
    return {"verdict": said, "method": best["label"], "text": text}


ALONE = "student alone"
"""The label of the runs without a method."""


def _run(run: Mapping[str, Any], answers: Answers, places: Mapping[tuple[str, int], int]) -> dict[str, Any]:
    metrics = run["metrics"]
    told = {
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
        told["top1"] = _per_cent((answers.best[place] == answers.labels).mean())
        told["last_top1"] = _per_cent((answers.last[place] == answers.labels).mean())
        told["agreement_with_teacher"] = _per_cent((answers.best[place] == answers.teacher).mean())
    return told


def _method(
    label: str, told: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], reference: str
) -> dict[str, Any]:
    mine = [run for run in told if run["label"] == label]
    done = [run for run in mine if run["failed"] is None]
    seconds = _middle(done)
    usual = _middle([run for run in told if run["label"] == reference])
    memory = [run["peak_memory_bytes"] for run in done if run["peak_memory_bytes"] is not None]
    return {
        "label": label,
        "methods": next(list(run["methods"]) for run in runs if run["label"] == label),
        "seeds": [run["seed"] for run in done],
        "failed": len(mine) - len(done),
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
    """Mean and standard deviation over the seeds; the gain's fields stay null where there is none."""
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


def _gain(found: Gain, p_holm: float) -> dict[str, Any]:
    over_seeds = None
    if found.seeds_interval is not None and found.seeds_p is not None:
        over_seeds = {"gain_ci": _points(found.seeds_interval), "p_value": round(found.seeds_p, DIGITS)}
    return {
        "gain_points": _per_cent(found.mean),
        "gain_ci": _points(found.interval),
        "p_value": round(found.p_value, DIGITS),
        "p_holm": round(p_holm, DIGITS),
        "verdict": verdict(*found.interval),
        "over_seeds": over_seeds,
        "over_images": {"gain_ci": _points(found.images_interval)},
    }


def _teacher(answers: Answers) -> dict[str, Any]:
    right = answers.teacher == answers.labels
    return {
        "top1": _per_cent(right.mean()),
        "top1_ci": _points(wilson_interval(int(right.sum()), len(right))),
        "parameters": answers.teacher_parameters,
    }


def _rank(method: Mapping[str, Any], reference: str) -> tuple[int, float]:
    """The reference first, then by gain; last what has none."""
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
