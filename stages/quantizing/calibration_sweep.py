"""The sweep of `quantize.method: auto`: every calibration method is tried, and the best one is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from stages.onnx_files.quantizing import Recipe
from stages.onnx_files.ranges import Method, Ranges
from stages.quantizing.quantized_file import QuantizedFile, quantize_graph
from stages.quantizing.reference import FloatReference
from stages.quantizing.settings import QuantizeSettings

SWEEP = (
    Method("moving_average"),
    Method("minmax"),
    Method("percentile", 99.9),
    Method("percentile", 99.99),
    Method("percentile", 99.999),
    Method("entropy"),
)
"""All methods; of equally good ones, the first is used."""


def methods_to_try(settings: QuantizeSettings) -> tuple[Method, ...]:
    """Return all methods of `SWEEP`, or the one that the profile sets."""
    if settings.method == "auto":
        return SWEEP
    if settings.method == "percentile":
        return (Method("percentile", settings.percentile),)
    return (Method(settings.method),)


def duplicate_methods(ranges: Mapping[Method, Ranges]) -> dict[Method, Method]:
    """Return each method whose ranges equal those of an earlier one, with that earlier one."""
    duplicates: dict[Method, Method] = {}
    for method, own in ranges.items():
        for other, earlier in ranges.items():
            if other == method:
                break
            if other not in duplicates and own.alike(earlier):
                duplicates[method] = other
                break
    return duplicates


def choose_calibration(
    source: onnx.ModelProto,
    ranges: Mapping[Method, Ranges],
    recipe: Recipe,
    float_reasons: Mapping[str, str],
    reference: FloatReference,
) -> tuple[QuantizedFile, dict[str, Any]]:
    """Quantize with each method's ranges, and choose by the agreement with the float file.

    Of equal agreement on the held-out images, the smaller logit error decides, then the order of `ranges`. A
    method whose ranges equal those of an earlier one is reported and not tried.

    Args:
        source: The prepared float graph.
        ranges: Ranges by method.
        recipe: The recipe.
        float_reasons: Names of the nodes that stay in float, and why.
        reference: Images and float logits.

    Returns:
        The file of the best method, and the table of all methods, JSON-ready.
    """
    duplicates = duplicate_methods(ranges)
    files: dict[Method, QuantizedFile] = {}
    for method in ranges:
        if method not in duplicates:
            total = len(ranges) - len(duplicates)
            reference.progress.update(len(files), total, "methods", trying=str(method))
            files[method] = quantize_graph(source, ranges[method], recipe, float_reasons, reference)
    chosen = max(files, key=lambda method: _merit(files[method]))
    rows = [
        {
            "method": str(method),
            "agreement": files[method].agreement if method in files else None,
            "logit_rms_relative_to_std": files[method].relative_rms if method in files else None,
            "same_ranges_as": str(duplicates[method]) if method in duplicates else None,
            "chosen": method == chosen,
        }
        for method in ranges
    ]
    if len(ranges) > 1:
        reference.progress.note(_sentence(recipe, files, chosen, duplicates, reference))
    return files[chosen], {"method": str(chosen), "tried": rows, "images": len(reference.holdout)}


def _merit(file: QuantizedFile) -> tuple[float, float]:
    return file.agreement, -file.relative_rms if math.isfinite(file.relative_rms) else -math.inf


def _sentence(
    recipe: Recipe,
    files: Mapping[Method, QuantizedFile],
    chosen: Method,
    duplicates: Mapping[Method, Method],
    reference: FloatReference,
) -> str:
    best = files[chosen]
    others = ", ".join(f"{method} {file.agreement:.1f}" for method, file in files.items() if method != chosen)
    same = "; ".join(f"{method} has the ranges of {other}" for method, other in duplicates.items())
    return (
        f"{recipe.file}: calibrated by {chosen}, which agrees with the float file on {best.agreement:.1f} % "
        f"of {len(reference.holdout)} held-out training images (logit error {best.relative_rms:.3g} of the "
        "standard deviation" + (f"; {others} %" if others else "") + (f"; {same}" if same else "") + ")."
    )
