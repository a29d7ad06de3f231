"""What the page tells of INT8 files: how they were calibrated, what they cost, what stayed in float."""

from __future__ import annotations

from collections import Counter
from typing import Any

NAMED = 12
"""Layers that stayed in float, named before the rest is only counted."""


def int8_rows(calibration: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each INT8 file, a cell a column; none if no target needs one.

    calibration: `calibration.json`. `stayed`: the layers in float and why, in words; `missed`: it loses
    more than the budget allows.
    """
    return [
        {
            "file": figures["file"],
            "method": figures["calibration"]["method"] + _fine_tuned(figures),
            "missed": figures["budget"]["missed"],
            "stayed": _stayed(figures["float_layers"]),
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
    """What of the calibration images should make one look twice."""
    return list(calibration.get("images", {}).get("doubts", []))


def _fine_tuned(figures: dict[str, Any]) -> str:
    """What follows the way of calibrating where the file is of a network fine-tuned for it."""
    tuned = figures.get("quantization_aware")
    return ", then fine-tuned under its rounding" if tuned and tuned["kept"] else ""


def _stayed(layers: list[dict[str, str]]) -> str:
    """`2 (sensitivity), 1 (quantize.exclude): a/Conv, b/Conv, c/Gemm`."""
    if not layers:
        return "none"
    counts = Counter(one["why"] for one in layers)
    reasons = ", ".join(f"{number} ({why})" for why, number in counts.items())
    names = ", ".join(one["layer"] for one in layers[:NAMED])
    return f"{reasons}: {names}" + (f" and {len(layers) - NAMED} more" if len(layers) > NAMED else "")
