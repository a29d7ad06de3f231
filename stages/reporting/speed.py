"""The page's tables of latency beside the scorecard: comparisons, load, energy, doubts."""

from __future__ import annotations

from typing import Any

NONE = "–"


def comparison_rows(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each pair of targets that were timed in turns."""
    return [
        {
            "first": _name(pair["first"]),
            "second": _name(pair["second"]),
            "verdict": pair["verdict"],
            "doubts": _doubts(pair),
            "cells": [
                f"{pair['p50_ms'][0]:.3f}",
                f"{pair['p50_ms'][1]:.3f}",
                f"{pair['ratio']:.3f}",
                f"{pair['ratio_ci'][0]:.3f} to {pair['ratio_ci'][1]:.3f}",
            ],
        }
        for pair in scorecard["comparisons"]
    ]


def load_rows(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each target and rate of arrivals."""
    return [
        {
            "target": _name(row),
            "flags": entry["flags"],
            "doubts": _doubts(entry),
            "cells": [
                f"{entry['rate_per_s']:g}",
                f"{100 * entry['utilisation']:.0f} %",
                *(_ms(entry[name]) for name in ("p50_ms", "p90_ms", "p99_ms", "wait_p50_ms", "wait_p99_ms")),
                _ms(entry["service_p50_ms"]),
                f"{entry['n']:,}",
            ],
        }
        for row in scorecard["rows"]
        for entry in row["open_loop"]
    ]


def condition_rows(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each latency: warm-up, CPU time, first inference, GPU time, energy, doubts."""
    return [
        {
            "target": f"{_name(row)}, batch {entry['batch']}, {entry['threads']} thread"
            + "s" * (entry["threads"] != 1),
            "doubts": _doubts(entry),
            "cells": [
                f"{entry['n']:,}",
                f"{entry['warmup']['calls']:,} in {entry['warmup']['seconds']:.1f} s",
                f"{entry['load_ms']:.0f}",
                f"{entry['first_inference_ms']:.2f}",
                _ms(entry["cpu_p50_ms"]),
                _ms((entry["gpu"] or {}).get("inference_p50_ms")),
                _joules(entry["energy"]),
            ],
        }
        for row in scorecard["rows"]
        for entry in row["latency"]
    ]


def why_no_energy(scorecard: dict[str, Any]) -> list[str]:
    """Return each reason why energy was not measured, once."""
    reasons = [entry["energy"]["why_not"] for row in scorecard["rows"] for entry in row["latency"]]
    return list(dict.fromkeys(reason for reason in reasons if reason))


def _doubts(entry: dict[str, Any]) -> list[str]:
    """Return what makes a latency, a comparison or an entry under load doubtful."""
    return [*entry["health"]["contended_by"], *entry["health"]["throttled_by"]]


def _name(side: dict[str, Any]) -> str:
    return str(side["target"]) if side["model"] == "student" else f"{side['model']}, {side['target']}"


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else NONE


def _joules(energy: dict[str, Any]) -> str:
    """Return the millijoules per image, with the idle power subtracted."""
    value = energy["joules_per_image_over_idle"]
    return f"{1e3 * value:.3g}" if value is not None else "not measured"
