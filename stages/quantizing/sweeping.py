"""Which calibration method serves a network is tried, not believed: the sweep of `quantize.method: auto`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from stages.onnx_files.quantizing import Recipe
from stages.onnx_files.ranges import Method, Ranges
from stages.quantizing.bench import Bench
from stages.quantizing.making import Made, make
from stages.quantizing.settings import QuantizeSettings

SWEPT = (
    Method("moving_average"),
    Method("minmax"),
    Method("percentile", 99.9),
    Method("percentile", 99.99),
    Method("percentile", 99.999),
    Method("entropy"),
)
"""In this order where nothing else tells two apart."""


def methods_of(settings: QuantizeSettings) -> tuple[Method, ...]:
    """The methods to try: all of `SWEPT`, or the one that the profile names."""
    if settings.method == "auto":
        return SWEPT
    if settings.method == "percentile":
        return (Method("percentile", settings.percentile),)
    return (Method(settings.method),)


def same_ranges(found: Mapping[Method, Ranges]) -> dict[Method, Method]:
    """Of each method that found what an earlier one found, that earlier one."""
    twins: dict[Method, Method] = {}
    for method, ranges in found.items():
        for other, known in found.items():
            if other == method:
                break
            if other not in twins and ranges.alike(known):
                twins[method] = other
                break
    return twins


def calibrated(
    source: onnx.ModelProto,
    found: Mapping[Method, Ranges],
    recipe: Recipe,
    kept_float: Mapping[str, str],
    bench: Bench,
) -> tuple[Made, dict[str, Any]]:
    """The file of the method that agrees best with the float file on the held-out images, and the table.

    Equal agreement: the smaller logit error, then the order of `found`. A method whose ranges are those of
    an earlier one is told and not tried.
    """
    twins = same_ranges(found)
    files: dict[Method, Made] = {}
    for method in found:
        if method not in twins:
            bench.progress.update(len(files), len(found) - len(twins), "methods", trying=str(method))
            files[method] = make(source, found[method], recipe, kept_float, bench)
    chosen = max(files, key=lambda method: _merit(files[method]))
    rows = [
        {
            "method": str(method),
            "agreement": files[method].agreement if method in files else None,
            "logit_rms_relative_to_std": files[method].rms if method in files else None,
            "same_ranges_as": str(twins[method]) if method in twins else None,
            "chosen": method == chosen,
        }
        for method in found
    ]
    if len(found) > 1:
        bench.progress.note(_sentence(recipe, files, chosen, twins, bench))
    return files[chosen], {"method": str(chosen), "tried": rows, "images": len(bench.holdout)}


def _merit(made: Made) -> tuple[float, float]:
    return made.agreement, -made.rms if math.isfinite(made.rms) else -math.inf


def _sentence(
    recipe: Recipe,
    files: Mapping[Method, Made],
    chosen: Method,
    twins: Mapping[Method, Method],
    bench: Bench,
) -> str:
    best = files[chosen]
    others = ", ".join(f"{method} {made.agreement:.1f}" for method, made in files.items() if method != chosen)
    same = "; ".join(f"{method} finds the ranges of {other}" for method, other in twins.items())
    return (
        f"{recipe.file}: calibrated by {chosen}, which agrees with the float file on {best.agreement:.1f} % "
        f"of {len(bench.holdout)} held-out training images (logit error {best.rms:.3g} of the deviation"
        + (f"; {others} %" if others else "")
        + (f"; {same}" if same else "")
        + ")."
    )
