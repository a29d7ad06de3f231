"""The page's table of INT8 files: calibration, cost in accuracy, and layers that stayed in float."""

from __future__ import annotations

from collections import Counter
from typing import Any

LISTED_LAYERS = 12
"""How many layers that stayed in float are listed; the others are only counted."""


def int8_rows(calibration: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each INT8 file; an empty list if no target needs one.

    Args:
        calibration: The content of `calibration.json`.

    Returns:
        Rows with `file`, `method`, `cells`, `float_layers` (the layers in float and why, in words) and
        `missed` (it loses more than the budget allows).
    """
    return [
        {
            "file": figures["file"],
            "method": figures["calibration"]["method"] + _fine_tuned(figures),
            "missed": figures["budget"]["missed"],
            "float_layers": _float_layers(figures["float_layers"]),
            "cells": [
                f"{figures['agreement']:.1f}",
                f"{figures['holdout']['agreement']:.1f}",
                f"{figures['logit_rms_relative_to_std']:.3g}",
                f"{figures['against_float']['points']:+.2f}",
                "{:+.2f} to {:+.2f}".format(*figures["against_float"]["ci"]),
            ],
        }
        for figures in calibration.get("files", {}).values()
    ]


def calibration_doubts(calibration: dict[str, Any]) -> list[str]:
    """Return the doubts about the calibration images, a sentence each."""
    return list(calibration.get("images", {}).get("doubts", []))


def _fine_tuned(figures: dict[str, Any]) -> str:
    """Return the words that follow the calibration method of a fine-tuned network."""
    tuned = figures.get("quantization_aware")
    return ", then fine-tuned under its rounding" if tuned and tuned["kept"] else ""


def _float_layers(layers: list[dict[str, str]]) -> str:
    """Return `2 (sensitivity), 1 (quantize.exclude): a/Conv, b/Conv, c/Gemm`."""
    if not layers:
        return "none"
    counts = Counter(layer["why"] for layer in layers)
    reasons = ", ".join(f"{number} ({why})" for why, number in counts.items())
    names = ", ".join(layer["layer"] for layer in layers[:LISTED_LAYERS])
    more = len(layers) - LISTED_LAYERS
    return f"{reasons}: {names}" + (f" and {more} more" if more > 0 else "")
