"""The page of a comparison, made only from `comparison.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.reporting import charts, gains
from stages.reporting.model_card import bytes_for_people
from stages.reporting.parts import NONE

TEMPLATES = Path(charts.__file__).parent


def page(title: str, comparison: dict[str, Any]) -> str:
    """Return the self-contained HTML page of a comparison.

    Args:
        title: The headline.
        comparison: The content of `comparison.json`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("comparison.html.j2").render(
        title=title,
        comparison=comparison,
        seeds=", ".join(map(str, comparison["seeds"])),
        rows=[_row(method, comparison) for method in comparison["methods"]],
        runs=[_run(run) for run in comparison["runs"]],
        gains={epochs: gain_chart(comparison, epochs) for epochs in ("best", "last")},
        tradeoff=tradeoff_chart(comparison),
        most=max((len(method["seeds"]) for method in comparison["methods"]), default=0),
    )


def gain_chart(comparison: dict[str, Any], epochs: str) -> str:
    """Draw each method's gain with its interval, and below it the gain of every seed."""
    column = "top1" if epochs == "best" else "last_top1"
    top1 = {(run["label"], run["seed"]): run[column] for run in comparison["runs"]}
    rows = []
    for method in comparison["methods"]:
        figures = method[epochs]
        if figures["gain_points"] is None:
            continue
        seeds = [
            (seed, top1[method["label"], seed] - top1[comparison["reference"], seed])
            for seed in method["seeds_compared"]
        ]
        low, high = figures["gain_ci"]
        rows.append(
            gains.Row(method["label"], figures["gain_points"], (low, high), seeds, figures["verdict"])
        )
    the = "the " if comparison["reference"] == "student alone" else ""
    label = f"gain over {the}{comparison['reference']}, points"
    return gains.gains(rows, x_label=label, title=f"Gain, {epochs} epoch")


def tradeoff_chart(comparison: dict[str, Any]) -> str:
    """Draw accuracy against the time of a training epoch."""
    marks = []
    for method in comparison["methods"]:
        seconds, figures = method["seconds_per_epoch"], method["best"]
        if not seconds or figures["top1"] is None:
            continue
        spread = figures["top1_sd"]
        marks.append(
            charts.Mark(
                gains.short(method["label"]),
                seconds,
                figures["top1"],
                "baseline" if method["label"] == comparison["reference"] else "student",
                (figures["top1"] - spread, figures["top1"] + spread) if spread is not None else None,
                f"{figures['top1']:.2f} %, {seconds:.3g} s per epoch",
            )
        )
    return charts.scatter(
        marks, x_label="seconds per epoch (logarithmic)", y_label="top-1, %", title="Accuracy against time"
    )


def _row(method: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    best, last = method["best"], method["last"]
    return {
        "label": method["label"],
        "methods": " + ".join(method["methods"]),
        "best": method["label"] == comparison["answer"]["method"]
        and comparison["answer"]["verdict"] == "yes",
        "failed": method["failed"],
        "cells": [
            f"{len(method['seeds'])}",
            _spread(best),
            _points(best["gain_points"]),
            _interval(best["gain_ci"]),
            _p(best["p_holm"]),
            _interval(best["over_seeds"] and best["over_seeds"]["gain_ci"]),
            _interval(best["over_images"] and best["over_images"]["gain_ci"]),
            _spread(last),
            _points(last["gain_points"]),
            _number(method["agreement_with_teacher"]),
            _number(method["seconds_per_epoch"]),
            f"{method['times_reference']:.2f}x" if method["times_reference"] else NONE,
            f"{method['parameters']:,}" if method["parameters"] is not None else NONE,
            f"+{method['method_parameters']:,}" if method["method_parameters"] is not None else NONE,
            bytes_for_people(method["peak_memory_bytes"])
            if method["peak_memory_bytes"] is not None
            else "not measured",
        ],
    }


def _run(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": run["label"],
        "failed": run["failed"],
        "cells": [
            str(run["seed"]),
            _number(run["top1"]),
            _number(run["last_top1"]),
            _number(run["val_top1"]),
            _number(run["last_val_top1"]),
            str(run["best_epoch"]) if run["best_epoch"] is not None else NONE,
            _number(run["agreement_with_teacher"]),
            _number(run["seconds_per_epoch"]),
        ],
        "key": (run["key"] or NONE)[:12],
    }


def _spread(figures: dict[str, Any]) -> str:
    if figures["top1"] is None:
        return NONE
    return f"{figures['top1']:.2f}" + (
        f" ± {figures['top1_sd']:.2f}" if figures["top1_sd"] is not None else ""
    )


def _points(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}"


def _interval(pair: list[float] | None) -> str:
    return f"{pair[0]:+.2f} to {pair[1]:+.2f}" if pair else NONE


def _p(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
