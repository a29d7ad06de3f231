"""One INT8 file: quantized from a float graph, and compared with the float file.

Nothing here depends on how ranges and float nodes were chosen, or where the float graph comes from: a
fine-tuned graph is treated like the first one.
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
from stages.quantizing.reference import FloatReference, model_bytes


@dataclass(frozen=True)
class QuantizedFile:
    """An INT8 form of a float graph, and how close it is to the float file on held-out training images.

    Attributes:
        recipe: The recipe of its runtimes.
        source: The prepared float graph.
        ranges: The range of every quantized activation.
        float_reasons: Names of the nodes that stay in float, and why.
        model: The Q/DQ graph.
        agreement: Per cent of the held-out images with the float file's class.
        relative_rms: Root mean square of the logits' error, as a share of the standard deviation of the
            float logits.
    """

    recipe: Recipe
    source: onnx.ModelProto
    ranges: Ranges
    float_reasons: Mapping[str, str]
    model: onnx.ModelProto
    agreement: float
    relative_rms: float

    @property
    def optimise(self) -> bool:
        """Whether ONNX Runtime may optimise the graph when it runs the file for a comparison.

        It runs the signed file node by node, the way TensorRT computes it: ONNX Runtime is not its runtime.
        """
        return self.recipe.name == "x86"


@dataclass(frozen=True)
class ValidationResult:
    """An INT8 file's logits of the validation images, and what quantization costs in accuracy.

    Attributes:
        logits: float32 (n, classes).
        against_float: The result of `paired_accuracy` against the float file.
        budget: Points of top-1 that the file may lose.
    """

    logits: np.ndarray
    against_float: Mapping[str, Any]
    budget: float

    @property
    def exceeds_budget(self) -> bool:
        """Whether the file loses more than the budget, by the point estimate.

        With few images an interval is wide, and a file that most likely lost too much should be fixed, not
        excused.
        """
        return bool(self.against_float["points"] < -self.budget)

    def as_json(self) -> dict[str, Any]:
        """Return the loss, JSON-ready; `beyond_noise`: the whole 95 % interval is beyond the budget."""
        low, high = self.against_float["ci"]
        return {
            "points": self.budget,
            "lost": round(-self.against_float["points"], 4) + 0.0,
            "lost_ci": [round(-high, 4) + 0.0, round(-low, 4) + 0.0],
            "missed": self.exceeds_budget,
            "beyond_noise": bool(high < -self.budget),
        }


def quantize_graph(
    source: onnx.ModelProto,
    ranges: Ranges,
    recipe: Recipe,
    float_reasons: Mapping[str, str],
    reference: FloatReference,
) -> QuantizedFile:
    """Quantize a prepared float graph, and compare it with the float file on the held-out images.

    Args:
        source: The prepared float graph.
        ranges: The range of every activation at the recipe's nodes.
        recipe: The recipe.
        float_reasons: Names of the nodes that stay in float, and why.
        reference: Images and float logits.

    Raises:
        StageError: No node is left to quantize.
    """
    model = quantized(
        source,
        ranges,
        recipe,
        per_channel=reference.settings.per_channel,
        skipped=set(float_reasons),
        card=reference.card,
    )
    logits = reference.holdout_logits(model_bytes(model), optimise=recipe.name == "x86")
    agreement, relative_rms = compare_logits(logits, reference.float_holdout)
    return QuantizedFile(recipe, source, ranges, float_reasons, model, agreement, relative_rms)


def validate(file: QuantizedFile, reference: FloatReference) -> ValidationResult:
    """Measure what the file costs in accuracy on the validation images.

    These images choose no range; they decide which layers stay in float and whether a fine-tuned file is
    used.
    """
    logits = reference.validation_logits(model_bytes(file.model), file.recipe.name, optimise=file.optimise)
    cost = paired_accuracy(logits, reference.float_validation, reference.labels)
    return ValidationResult(logits, cost, reference.settings.budget_points)


def compare_logits(logits: np.ndarray, float_logits: np.ndarray) -> tuple[float, float]:
    """Compare a file's logits with the float file's.

    Args:
        logits: Float (n, classes).
        float_logits: Float (n, classes), of the float file.

    Returns:
        Per cent of equal predictions, and the root mean square error as a share of the standard deviation of
        the float logits.
    """
    agreement = 100.0 * float((logits.argmax(axis=1) == float_logits.argmax(axis=1)).mean())
    error = float(np.sqrt(np.mean((float_logits.astype(np.float64) - logits) ** 2)))
    return round(agreement, 4), float(f"{error / max(float(float_logits.std()), 1e-12):.3g}")
