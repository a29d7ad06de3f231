"""What the page tells of latency beside the scorecard: comparisons, load, energy, doubts."""

from __future__ import annotations

from typing import Any

NONE = "–"


def comparison_rows(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pair of targets timed in turns, a cell a column."""
    return [
        {
            "first": _named(one["first"]),
            "second": _named(one["second"]),
            "verdict": one["verdict"],
            "doubts": _doubts(one),
            "cells": [
                f"{one['p50_ms'][0]:.3f}",
                f"{one['p50_ms'][1]:.3f}",
                f"{one['ratio']:.3f}",
                f"{one['ratio_ci'][0]:.3f} to {one['ratio_ci'][1]:.3f}",
            ],
        }
        for one in scorecard["comparisons"]
    ]


def load_rows(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rate of arrivals of every target."""
    return [
        {
            "target": _named(row),
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
    """How each latency came about: warm-up, CPU time, first inference, GPU phases, energy, signs of doubt."""
    return [
        {
            "target": f"{_named(row)}, batch {entry['batch']}, {entry['threads']} thread"
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
    """Each reason once."""
    reasons = [entry["energy"]["why_not"] for row in scorecard["rows"] for entry in row["latency"]]
    return list(dict.fromkeys(reason for reason in reasons if reason))


def _doubts(entry: dict[str, Any]) -> list[str]:
    """What a latency, a comparison or an entry under load has against it, in words."""
    return [*entry["health"]["contended_by"], *entry["health"]["throttled_by"]]


def _named(one: dict[str, Any]) -> str:
    return str(one["target"]) if one["model"] == "student" else f"{one['model']}, {one['target']}"


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else NONE


def _joules(energy: dict[str, Any]) -> str:
    """Millijoules an image with the idle power subtracted."""
    value = energy["joules_per_image_over_idle"]
    return f"{1e3 * value:.3g}" if value is not None else "not measured"
