"""One INT8 file: made from a float graph, and judged against the float file.

`make` and `judge` know nothing of how ranges and float nodes were chosen, nor where the float graph
comes from: a fine-tuned one goes through them like the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from stages.onnx_files.quantized_proof import paired_accuracy
from stages.onnx_files.quantizing import Recipe, quantized
from stages.onnx_files.ranges import Ranges
from stages.quantizing.bench import Bench, content


@dataclass(frozen=True)
class Made:
    """An INT8 form of a float graph, and how near it is to the float file on held-out training images.

    source: the prepared float graph. kept_float: names of its nodes that were left in float, and why.
    model: the Q/DQ graph. agreement: per cent of the held-out images with the float file's class.
    rms: root mean square of the logits' error, as a share of the float logits' standard deviation.
    """

    recipe: Recipe
    source: onnx.ModelProto
    ranges: Ranges
    kept_float: Mapping[str, str]
    model: onnx.ModelProto
    agreement: float
    rms: float

    @property
    def optimise(self) -> bool:
        """Whether ONNX Runtime may optimise the file when it is judged.

        The signed file is judged node by node, as TensorRT computes it; ONNX Runtime is not its runtime.
        """
        return self.recipe.name == "x86"


@dataclass(frozen=True)
class Judged:
    """What an INT8 file says of the validation images: logits float32 (n, classes), and what they cost.

    against_float: as `paired_accuracy` tells it. budget: points of top-1 that may be lost.
    """

    logits: np.ndarray
    against_float: Mapping[str, Any]
    budget: float

    @property
    def missed(self) -> bool:
        """Whether more is lost than the budget allows, by the point estimate: with few images an interval
        is wide, and a file that most likely lost too much should be fixed, not excused.
        """
        return bool(self.against_float["points"] < -self.budget)

    def told(self) -> dict[str, Any]:
        """JSON-ready. `beyond_noise`: the whole 95 % interval lies beyond the budget."""
        found = self.against_float
        return {
            "points": self.budget,
            "lost": round(-found["points"], 4) + 0.0,
            "lost_ci": [round(-found["ci"][1], 4) + 0.0, round(-found["ci"][0], 4) + 0.0],
            "missed": self.missed,
            "beyond_noise": bool(found["ci"][1] < -self.budget),
        }


def make(
    source: onnx.ModelProto, ranges: Ranges, recipe: Recipe, kept_float: Mapping[str, str], bench: Bench
) -> Made:
    """Quantizes a prepared float graph, and compares it with the float file on the held-out images.

    ranges: of every activation at the recipe's nodes. kept_float: names of nodes, and why they stay
    float. Raises StageError if no node is left to quantize.
    """
    model = quantized(
        source,
        ranges,
        recipe,
        per_channel=bench.settings.per_channel,
        skipped=set(kept_float),
        card=bench.card,
    )
    logits = bench.holdout_logits(content(model), optimise=recipe.name == "x86")
    agreement, rms = likeness(logits, bench.float_holdout)
    return Made(recipe, source, ranges, kept_float, model, agreement, rms)


def judge(made: Made, bench: Bench) -> Judged:
    """What the file costs in accuracy on the validation images. They chose no range; what stays in float
    and whether a fine-tuned file is kept are decided on them.
    """
    logits = bench.validation_logits(content(made.model), made.recipe.name, optimise=made.optimise)
    cost = paired_accuracy(logits, bench.float_validation, bench.labels)
    return Judged(logits, cost, bench.settings.budget_points)


def likeness(logits: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """(per cent of equal predictions, root mean square error over the reference's deviation)."""
    agreement = 100.0 * float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())
    error = float(np.sqrt(np.mean((reference.astype(np.float64) - logits) ** 2)))
    return round(agreement, 4), float(f"{error / max(float(reference.std()), 1e-12):.3g}")
