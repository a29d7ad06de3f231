"""The scorecard: rows from what the workers measured, and the target to ship."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.measuring.intervals import wilson_interval

ACCURACY_BUDGET_POINTS = 1.0
"""A target may lose this much top-1 against the float student and still be recommended."""


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Top-1 in per cent with its 95 % Wilson interval; logits (n, classes), labels (n,)."""
    correct = int((logits.argmax(axis=1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    return {
        "top1": round(100.0 * correct / len(labels), 4),
        "top1_ci": [round(100.0 * low, 4), round(100.0 * high, 4)],
    }


def agreement(logits: np.ndarray, predictions: np.ndarray) -> float:
    """Share of images, in per cent, with the same predicted class as `predictions` (n,)."""
    return round(100.0 * float((logits.argmax(axis=1) == predictions).mean()), 4)


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
        "mend": target.get("mend"),
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
        "flags": [],
    }


def first_p50_ms(scorecard_row: dict[str, Any]) -> float | None:
    """p50 at the first batch size and thread count of the profile."""
    entries = scorecard_row["latency"]
    return entries[0].get("p50_ms") if entries else None


def recommend(rows: list[dict[str, Any]], float_top1: float) -> dict[str, Any]:
    """Names the target to ship: the fastest whose top-1 stays within the budget of the float student.

    `float_top1` is the float student's top-1 in per cent, by PyTorch. Says of every other measured
    target why it is not the one: slower than the same runtime's fp32, or too inaccurate.
    """
    candidates = [r for r in rows if r["model"] == "student" and r["top1"] is not None and first_p50_ms(r)]
    rejected: list[dict[str, str]] = []
    kept = []
    for candidate in candidates:
        lost = float_top1 - candidate["top1"]
        if lost > ACCURACY_BUDGET_POINTS:
            rejected.append(
                {"target": candidate["target"], "why": f"loses {lost:.2f} points against the float student"}
            )
            continue
        plain = next(
            (r for r in candidates if r["runtime"] == candidate["runtime"] and r["precision"] == "fp32"), None
        )
        if plain is not None and plain is not candidate:
            ratio = (first_p50_ms(candidate) or 0.0) / (first_p50_ms(plain) or 1.0)
            if ratio >= 1.0:
                rejected.append(
                    {
                        "target": candidate["target"],
                        "why": f"is not faster than {plain['target']} here ({ratio:.2f} times its p50)",
                    }
                )
                continue
        kept.append(candidate)
    if not kept:
        return {
            "target": None,
            "reason": "no measured target stays within the accuracy budget",
            "rejected": rejected,
        }
    best = min(kept, key=lambda r: first_p50_ms(r) or 0.0)
    entry = best["latency"][0]
    reason = (
        f"lowest p50 ({entry['p50_ms']:.3f} ms at batch {entry['batch']}, {entry['threads']} "
        f"thread{'s' if entry['threads'] != 1 else ''}) of the targets within "
        f"{ACCURACY_BUDGET_POINTS:g} point of the float student"
    )
    return {"target": best["target"], "reason": reason, "rejected": rejected}
