"""The scorecard: rows from what the workers measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.statistics.intervals import wilson_interval


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Top-1 in per cent with its 95 % Wilson interval; logits (n, classes), labels (n,)."""
    return top1(logits.argmax(axis=1), labels)


def top1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """As `accuracy`, of predicted classes (n,)."""
    correct = int((predictions == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    return {
        "top1": round(100.0 * correct / len(labels), 4),
        "top1_ci": [round(100.0 * low, 4), round(100.0 * high, 4)],
    }


def agreement(logits: np.ndarray, predictions: np.ndarray) -> float:
    """Share of images, in per cent, with the same predicted class as `predictions` (n,)."""
    return alike(logits.argmax(axis=1), predictions)


def alike(predictions: np.ndarray, others: np.ndarray) -> float:
    """Share of images, in per cent, with the same predicted class; both (n,)."""
    return round(100.0 * float((predictions == others).mean()), 4)


def row(target: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """A row with what is known before measuring: `target` is an entry of build.json."""
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
    """The baseline's p50 over the row's own, at the first batch size and thread count that the row ran.

    None if the baseline did not run that: times of unequal batches say nothing of speed.
    """
    if not scorecard_row["latency"] or not baseline:
        return None
    own = scorecard_row["latency"][0]
    for entry in baseline["latency"]:
        if (entry["batch"], entry["threads"]) == (own["batch"], own["threads"]):
            return float(round(entry["p50_ms"] / own["p50_ms"], 3))
    return None


def first_p50_ms(scorecard_row: dict[str, Any]) -> float | None:
    """p50 at the first batch size and thread count of the profile."""
    entries = scorecard_row["latency"]
    return entries[0].get("p50_ms") if entries else None
