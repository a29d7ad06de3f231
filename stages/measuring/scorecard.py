"""The scorecard's rows: the figures that the workers measured, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.statistics.intervals import wilson_interval


def top1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return `top1` in per cent and `top1_ci`, its 95 % Wilson interval, of predicted classes (n,)."""
    correct = int((predictions == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    return {
        "top1": round(100.0 * correct / len(labels), 4),
        "top1_ci": [round(100.0 * low, 4), round(100.0 * high, 4)],
    }


def agreement(predictions: np.ndarray, others: np.ndarray) -> float:
    """Return the share of images, in per cent, with the same predicted class; both (n,)."""
    return round(100.0 * float((predictions == others).mean()), 4)


def row(target: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the facts known before measuring; figures are null.

    Args:
        target: An entry of build.json.
        card: The network's `model.json`.
    """
    return {
        "model": target["model"],
        "target": target["target"],
        "runtime": target["runtime"],
        "precision": target["precision"],
        "built": target["built"],
        "required": bool(target.get("required")),
        "why_not": target.get("why_not"),
        "hint": target.get("hint"),
        "top1": None,
        "top1_ci": None,
        "agreement": None,
        "agreement_with_float": None,
        "latency": [],
        "open_loop": [],
        "throughput_ips": None,
        "speedup": None,
        "size_bytes": target.get("size_bytes"),
        "peak_memory_bytes": None,
        "memory_over_idle_bytes": None,
        "load_ms": None,
        "first_inference_ms": None,
        "energy": None,
        "effective_precision": None,
        "parameters": card["parameters"],
        "sha256": target.get("sha256"),
        "versions": target.get("versions", {}),
        "facts": {},
        "float_layers": target.get("float_layers"),
        "flags": [],
    }


def speedup(scorecard_row: dict[str, Any], baseline: dict[str, Any] | None) -> float | None:
    """Return the baseline's p50 over the row's own, at the row's first batch size and thread count.

    None if the baseline did not run these: latencies of different batch sizes are not comparable.
    """
    if not scorecard_row["latency"] or not baseline:
        return None
    own = scorecard_row["latency"][0]
    for entry in baseline["latency"]:
        if (entry["batch"], entry["threads"]) == (own["batch"], own["threads"]):
            return float(round(entry["p50_ms"] / own["p50_ms"], 3))
    return None


def first_p50_ms(scorecard_row: dict[str, Any]) -> float | None:
    """Return p50 at the row's first batch size and thread count in milliseconds; None if not measured."""
    entries = scorecard_row["latency"]
    return entries[0].get("p50_ms") if entries else None
