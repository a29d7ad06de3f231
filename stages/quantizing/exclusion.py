"""Leaves the layers that hurt most in float, as few as bring an INT8 file within its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.quantizing.bench import Bench
from stages.quantizing.making import Judged, Made, judge, make
from stages.quantizing.reasons import SENSITIVE
from stages.quantizing.sensitivity import Layer, ranked

MOST_PRUNED = 8
"""A list of so many layers at the most is tried again without each of them."""

HELPS = 0.5
"""A list that does not bring the file within its limits is kept if it leaves no more than this share of
the predictions that differed; otherwise its layers would cost time for nothing."""


@dataclass(frozen=True)
class Attempt:
    """A file with `layers` left in float. judged: on the validation images; None if it agrees too little
    with the float file for that to matter. holds: it is within the limits.
    """

    layers: tuple[Layer, ...]
    made: Made
    judged: Judged | None
    holds: bool

    def told(self) -> dict[str, Any]:
        return {
            "layers": [node for layer in self.layers for node in layer.nodes],
            "macs_share": round(sum(layer.macs_share for layer in self.layers), 4),
            "agreement": self.made.agreement,
            "logit_rms_relative_to_std": self.made.rms,
            "points": self.judged.against_float["points"] if self.judged else None,
            "holds": self.holds,
        }


def shortfalls(made: Made, judged: Judged, bench: Bench) -> list[str]:
    """What of a file is outside its limits, in words; nothing if it is within them."""
    found = []
    if made.agreement < bench.settings.goal_agreement:
        found.append(
            f"it agrees with the float file on {made.agreement:.1f} % of the held-out images, "
            f"{bench.settings.goal_agreement:g} % is the goal"
        )
    if judged.missed:
        lost = judged.told()
        found.append(
            f"it loses {lost['lost']:.2f} points on the validation images ({lost['lost_ci'][0]:.2f} to "
            f"{lost['lost_ci'][1]:.2f}), {judged.budget:g} is the budget"
        )
    return found


def relieved(made: Made, judged: Judged, bench: Bench) -> tuple[Made, Judged, dict[str, Any] | None]:
    """The file to go on with, and what is to be told of the sensitivity of its layers (None: not measured).

    Layers are measured if the file is outside its limits, or `quantize.sensitivity` is `always`; some of
    them are left in float only in the first case.
    """
    why = shortfalls(made, judged, bench)
    if bench.settings.sensitivity == "never" or (not why and bench.settings.sensitivity == "missed"):
        return made, judged, None
    layers = ranked(made, bench)
    facts: dict[str, Any] = {
        "why": why or ["quantize.sensitivity: always"],
        "images": min(bench.settings.sensitivity_images, len(bench.holdout)),
        "layers": [layer.told() for layer in layers],
        "tried": [],
        "left_float": [],
    }
    if not why:
        return made, judged, facts
    attempts = _attempts(made, _affordable(layers, bench.settings.max_float_share), bench)
    facts["tried"] = [attempt.told() for attempt in attempts]
    best = _best(made, attempts)
    facts["left_float"] = best.told()["layers"] if best else []
    bench.progress.note(_sentence(made, why, best, bench))
    if best is None:
        return made, judged, facts
    return best.made, best.judged or judge(best.made, bench), facts


def _affordable(layers: Sequence[Layer], most: float) -> list[Layer]:
    """The worst layers first, each that still fits under the share of work that may stay float."""
    chosen: list[Layer] = []
    share = 0.0
    for layer in layers:
        if share + layer.macs_share <= most:
            chosen.append(layer)
            share += layer.macs_share
    return chosen


def _attempts(made: Made, layers: Sequence[Layer], bench: Bench) -> list[Attempt]:
    """First 1, 2, 4, ... of the worst layers until a list holds, then the shortest that does by halving,
    then that one without each of its layers that it can do without.
    """
    found: list[Attempt] = []

    def attempt(chosen: Sequence[Layer]) -> bool:
        bench.progress.update(0, 1, "lists", leaving_float=f"{len(chosen)} layers")
        found.append(_attempt(made, tuple(chosen), bench))
        return found[-1].holds

    fails, holds = 0, 0
    while fails < len(layers) and not holds:
        count = min(max(1, 2 * fails), len(layers))
        if attempt(layers[:count]):
            holds = count
        else:
            fails = count
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if attempt(layers[:middle]):
            holds = middle
        else:
            fails = middle
    kept = list(layers[:holds])
    if 1 < len(kept) <= MOST_PRUNED:
        for layer in reversed(kept[:-1]):  # without the last one it does not hold
            shorter = [one for one in kept if one is not layer]
            if attempt(shorter):
                kept = shorter
    return found


def _attempt(made: Made, layers: tuple[Layer, ...], bench: Bench) -> Attempt:
    left = {node: SENSITIVE for layer in layers for node in layer.nodes}
    again = make(made.source, made.ranges, made.recipe, {**made.kept_float, **left}, bench)
    if again.agreement < bench.settings.goal_agreement:
        return Attempt(layers, again, None, holds=False)
    judged = judge(again, bench)
    return Attempt(layers, again, judged, holds=not judged.missed)


def _best(made: Made, attempts: Sequence[Attempt]) -> Attempt | None:
    """The shortest list that holds; else the most telling one that is worth its time; else none."""
    holding = [attempt for attempt in attempts if attempt.holds]
    if holding:
        return min(holding, key=lambda attempt: len(attempt.layers))
    if not attempts:
        return None
    best = max(attempts, key=lambda attempt: (attempt.made.agreement, -attempt.made.rms))
    differed, differs = 100.0 - made.agreement, 100.0 - best.made.agreement
    return best if differs <= HELPS * differed and differs < differed else None


def _sentence(made: Made, why: Sequence[str], best: Attempt | None, bench: Bench) -> str:
    begins = f"{made.recipe.file}: {' and '.join(why)}; "
    if best is None:
        share = f"{100.0 * bench.settings.max_float_share:g} % of the work"
        return f"{begins}leaving the most sensitive layers in float, up to {share}, helps too little."
    told = best.told()
    named = ", ".join(told["layers"][:3]) + (", …" if len(told["layers"]) > 3 else "")
    return (
        f"{begins}{len(told['layers'])} of its layers stay in float ({named}; "
        f"{100.0 * told['macs_share']:.1f} % of the work): it then agrees on {told['agreement']:.1f} %"
        + ("." if best.holds else ", which is still outside its limits.")
    )
