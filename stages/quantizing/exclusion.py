"""Leaves the most sensitive layers in float: as few as bring an INT8 file within its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.quantizing.quantized_file import QuantizedFile, ValidationResult, quantize_graph, validate
from stages.quantizing.reasons import SENSITIVE
from stages.quantizing.reference import FloatReference
from stages.quantizing.sensitivity import LayerSensitivity, rank_layers

MAX_PRUNED = 8
"""A list of at most so many layers is tried again without each of them."""

HELPFUL_SHARE = 0.5
"""A list that does not bring the file within its limits is used if at most this share of the predictions
that differed still differ; otherwise its layers would cost time for nothing."""


@dataclass(frozen=True)
class Attempt:
    """A file with some layers left in float.

    Attributes:
        layers: The layers in float.
        file: The file.
        validation: Its result on the validation images; None if it agrees too little with the float file
            for that to matter.
        within_limits: Whether the file is within its limits.
    """

    layers: tuple[LayerSensitivity, ...]
    file: QuantizedFile
    validation: ValidationResult | None
    within_limits: bool

    def as_json(self) -> dict[str, Any]:
        """Return the layers and the file's figures, JSON-ready."""
        return {
            "layers": [node for layer in self.layers for node in layer.nodes],
            "macs_share": round(sum(layer.macs_share for layer in self.layers), 4),
            "agreement": self.file.agreement,
            "logit_rms_relative_to_std": self.file.relative_rms,
            "points": self.validation.against_float["points"] if self.validation else None,
            "holds": self.within_limits,
        }


def shortfalls(file: QuantizedFile, validation: ValidationResult, reference: FloatReference) -> list[str]:
    """Return a sentence for each limit that a file exceeds."""
    sentences = []
    goal = reference.settings.goal_agreement
    if file.agreement < goal:
        sentences.append(
            f"it agrees with the float file on {file.agreement:.1f} % of the held-out images, "
            f"{goal:g} % is the goal"
        )
    if validation.exceeds_budget:
        loss = validation.as_json()
        sentences.append(
            f"it loses {loss['lost']:.2f} points on the validation images ({loss['lost_ci'][0]:.2f} to "
            f"{loss['lost_ci'][1]:.2f}), {validation.budget:g} is the budget"
        )
    return sentences


def leave_layers_in_float(
    file: QuantizedFile, validation: ValidationResult, reference: FloatReference
) -> tuple[QuantizedFile, ValidationResult, dict[str, Any] | None]:
    """Measure the layers' sensitivity and leave some of them in float if the file exceeds its limits.

    Layers are measured if the file exceeds its limits, or if `quantize.sensitivity` is `always`; only in
    the first case some of them stay in float.

    Args:
        file: The INT8 file.
        validation: Its result on the validation images.
        reference: Images and float logits.

    Returns:
        The file to continue with, its result on the validation images, and the report of the sensitivity,
        JSON-ready (None if it was not measured).
    """
    why = shortfalls(file, validation, reference)
    settings = reference.settings
    if settings.sensitivity == "never" or (not why and settings.sensitivity == "missed"):
        return file, validation, None
    layers = rank_layers(file, reference)
    report: dict[str, Any] = {
        "why": why or ["quantize.sensitivity: always"],
        "images": min(settings.sensitivity_images, len(reference.holdout)),
        "layers": [layer.as_json() for layer in layers],
        "tried": [],
        "left_float": [],
    }
    if not why:
        return file, validation, report
    attempts = _attempts(file, _within_share(layers, settings.max_float_share), reference)
    report["tried"] = [attempt.as_json() for attempt in attempts]
    best = _best(file, attempts)
    report["left_float"] = best.as_json()["layers"] if best else []
    reference.progress.note(_sentence(file, why, best, reference))
    if best is None:
        return file, validation, report
    return best.file, best.validation or validate(best.file, reference), report


def _within_share(layers: Sequence[LayerSensitivity], limit: float) -> list[LayerSensitivity]:
    """Return the most sensitive layers, each that still fits under the share of work that may stay float."""
    chosen: list[LayerSensitivity] = []
    share = 0.0
    for layer in layers:
        if share + layer.macs_share <= limit:
            chosen.append(layer)
            share += layer.macs_share
    return chosen


def _attempts(
    file: QuantizedFile, layers: Sequence[LayerSensitivity], reference: FloatReference
) -> list[Attempt]:
    """Try lists of the most sensitive layers, and return all attempts.

    First 1, 2, 4, ... layers until a list brings the file within its limits; then the shortest such list
    by bisection; then that list without each of its layers in turn.
    """
    attempts: list[Attempt] = []

    def suffices(chosen: Sequence[LayerSensitivity]) -> bool:
        reference.progress.update(0, 1, "lists", leaving_float=f"{len(chosen)} layers")
        attempts.append(_attempt(file, tuple(chosen), reference))
        return attempts[-1].within_limits

    too_few, enough = 0, 0
    while too_few < len(layers) and not enough:
        count = min(max(1, 2 * too_few), len(layers))
        if suffices(layers[:count]):
            enough = count
        else:
            too_few = count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if suffices(layers[:middle]):
            enough = middle
        else:
            too_few = middle
    shortest = list(layers[:enough])
    if 1 < len(shortest) <= MAX_PRUNED:
        for layer in reversed(shortest[:-1]):  # the list without its last layer does not suffice
            shorter = [other for other in shortest if other is not layer]
            if suffices(shorter):
                shortest = shorter
    return attempts


def _attempt(file: QuantizedFile, layers: tuple[LayerSensitivity, ...], reference: FloatReference) -> Attempt:
    sensitive = {node: SENSITIVE for layer in layers for node in layer.nodes}
    float_reasons = {**file.float_reasons, **sensitive}
    candidate = quantize_graph(file.source, file.ranges, file.recipe, float_reasons, reference)
    if candidate.agreement < reference.settings.goal_agreement:
        return Attempt(layers, candidate, None, within_limits=False)
    validation = validate(candidate, reference)
    return Attempt(layers, candidate, validation, within_limits=not validation.exceeds_budget)


def _best(file: QuantizedFile, attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the shortest list that suffices, or else the best that is worth its time, or None."""
    sufficient = [attempt for attempt in attempts if attempt.within_limits]
    if sufficient:
        return min(sufficient, key=lambda attempt: len(attempt.layers))
    if not attempts:
        return None
    best = max(attempts, key=lambda attempt: (attempt.file.agreement, -attempt.file.relative_rms))
    differed, differs = 100.0 - file.agreement, 100.0 - best.file.agreement
    return best if differs <= HELPFUL_SHARE * differed and differs < differed else None


def _sentence(
    file: QuantizedFile, why: Sequence[str], best: Attempt | None, reference: FloatReference
) -> str:
    start = f"{file.recipe.file}: {' and '.join(why)}; "
    if best is None:
        share = f"{100.0 * reference.settings.max_float_share:g} % of the work"
        return f"{start}leaving the most sensitive layers in float, up to {share}, helps too little."
    facts = best.as_json()
    names = ", ".join(facts["layers"][:3]) + (", …" if len(facts["layers"]) > 3 else "")
    return (
        f"{start}{len(facts['layers'])} of its layers stay in float ({names}; "
        f"{100.0 * facts['macs_share']:.1f} % of the work): it then agrees on {facts['agreement']:.1f} %"
        + ("." if best.within_limits else ", which is still outside its limits.")
    )
