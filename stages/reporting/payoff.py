"""Does a lower precision pay? Compare each target of the student with fp32 of the same runtime.

The answer has the speed, the cost in accuracy, and the known reasons where the precision does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.statistics.intervals import paired_difference

LISTED_LAYERS = 5

Row = Mapping[str, Any]


def rows(scorecard: Mapping[str, Any], build: Mapping[str, Any], measured: Path) -> list[dict[str, Any]]:
    """Compare each measured target of the student with fp32 of its runtime.

    Args:
        scorecard: The content of measure's `scorecard.json`.
        build: The content of `build.json`.
        measured: The folder of measure's artefact, with every target's predictions.

    Returns:
        JSON-ready entries with `target`, `against`, `speed` (ratio of the p50, its interval, and `faster`,
        `slower` or `cannot tell`), `accuracy` (points against the fp32 target, image by image), `size_ratio`,
        `pays` (a verdict in words) and `why` (sentences, if it does not pay).
    """
    student = [row for row in scorecard["rows"] if row["model"] == "student" and row["top1"] is not None]
    facts = {target["target"]: target["facts"] for target in build["targets"] if target["model"] == "student"}
    entries = []
    for row in student:
        fp32 = next(
            (
                other
                for other in student
                if other["runtime"] == row["runtime"] and other["precision"] == "fp32"
            ),
            None,
        )
        if row["precision"] == "fp32" or fp32 is None:
            continue
        speed = _speed(fp32, row, scorecard["comparisons"])
        accuracy = _accuracy(fp32, row, measured)
        pays = _verdict(speed["verdict"], accuracy["verdict"])
        entries.append(
            {
                "target": row["target"],
                "against": fp32["target"],
                "speed": speed,
                "accuracy": accuracy,
                "size_ratio": round(row["size_bytes"] / fp32["size_bytes"], 3),
                "pays": pays,
                "why": [] if pays == "pays" else reasons(row, facts.get(row["target"], {})),
            }
        )
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries as rows of the page's table."""
    return [
        {
            "target": entry["target"],
            "against": entry["against"],
            "cells": [
                f"{entry['speed']['ratio']:.3f}" if entry["speed"]["ratio"] else "–",
                _span(entry["speed"]["ci"], 3),
                f"{entry['accuracy']['points']:+.2f}",
                _span(entry["accuracy"]["ci"], 2, sign=True),
                f"{entry['size_ratio']:.2f}",
            ],
            "verdict": entry["pays"],
            "pays": entry["pays"] == "pays",
            "why": entry["why"],
        }
        for entry in entries
    ]


def reasons(row: Row, facts: Mapping[str, Any]) -> list[str]:
    """Return the known reasons why a precision gained little, as reported by the builder and the runtime.

    Args:
        row: The target's row of the scorecard.
        facts: The target's facts in `build.json`.
    """
    facts = {**facts, **row["facts"]}
    known = [*_precision_in_force(row, facts), *_integers(facts), *_layers(row, facts), *_half(row, facts)]
    return known or [f"{row['runtime']} does not report which layers run in {row['precision']}"]


def _precision_in_force(row: Row, facts: Mapping[str, Any]) -> list[str]:
    effective = str(row["effective_precision"] or facts.get("effective_precision") or row["precision"])
    if row["precision"] in effective.split("+"):
        return []
    return [f"nothing runs in {row['precision']}: the precision in force is {effective}"]


def _integers(facts: Mapping[str, Any]) -> list[str]:
    """Return what ONNX Runtime and OpenVINO report of an INT8 file."""
    sentences = []
    if "integer_operators" in facts:
        sentences.append(f"{facts['integer_operators']} of {facts['operators']} operators run in integers")
    if facts.get("float_layers"):
        sentences.append(f"{facts['float_layers']} layers with weights stayed in floats")
    if facts.get("conversions"):
        sentences.append(f"{facts['conversions']} operators only convert between integers and floats")
    if "integer_layers" in facts:
        sentences.append(f"{facts['integer_layers']} layers with weights run in integers")
    return sentences


def _layers(row: Row, facts: Mapping[str, Any]) -> list[str]:
    """Return what TensorRT's engine inspector reports."""
    if "engine_layers" not in facts:
        return []
    layers = facts["engine_layers"]
    if not layers:
        return [f"which layers run in {row['precision']} is not known: {facts['engine_layers_why_not']}"]
    counts = layers.get("weighted") or {}
    sentences = [f"layers with weights by type: {_counts(counts)}"] if counts else []
    if row["precision"] == "int8" and layers["weighted_in_floats"]:
        names = layers["weighted_in_floats_named"]
        more = layers["weighted_in_floats"] - min(len(names), LISTED_LAYERS)
        listed = ", ".join(names[:LISTED_LAYERS]) + (f" and {more} more" if more else "")
        sentences.append(f"{layers['weighted_in_floats']} stayed in floats: {listed}")
    reformats = (layers.get("by_kind") or {}).get("Reformat", 0)
    if reformats:
        sentences.append(f"{reformats} layers only change format or type")
    return sentences


def _half(row: Row, facts: Mapping[str, Any]) -> list[str]:
    """Return what the conversion of a graph to fp16 or bf16 reports."""
    name = row["precision"]
    report = facts.get(name)
    if not isinstance(report, Mapping) or f"{name}_nodes" not in report:
        return []
    sentences = [
        f"{report[f'{name}_nodes']} of {report['nodes']} nodes are {name}, the others stayed in fp32"
    ]
    ranged = len(report.get("fp32_for_range") or ())
    return [*sentences, *([f"{ranged} of them for their range"] if ranged else [])]


def _speed(fp32: Row, row: Row, comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the comparison in turns; without it the ratio of the two p50, which decides nothing."""
    sides = {"model": "student", "target": fp32["target"]}, {"model": "student", "target": row["target"]}
    for comparison in comparisons:
        if (comparison["first"], comparison["second"]) == sides:
            return {
                "ratio": comparison["ratio"],
                "ci": comparison["ratio_ci"],
                "verdict": comparison["verdict"],
                "in_turns": True,
                "flags": comparison["flags"],
            }
    own, other = (each["latency"][0]["p50_ms"] if each["latency"] else None for each in (row, fp32))
    ratio = round(own / other, 4) if own and other else None
    return {"ratio": ratio, "ci": None, "verdict": "cannot tell", "in_turns": False, "flags": []}


def _accuracy(fp32: Row, row: Row, measured: Path) -> dict[str, Any]:
    folder = measured / "predictions"
    labels = np.load(folder / "labels.npy")
    after, before = (np.load(folder / f"student-{each['target']}.npy") == labels for each in (row, fp32))
    return paired_difference(after, before)


def _verdict(speed: str, accuracy: str) -> str:
    costs = " and less accurate" if accuracy == "worse" else ""
    if speed == "faster":
        return f"faster{costs}" if costs else "pays"
    return f"does not pay: {'slower' if speed == 'slower' else 'not measurably faster'}{costs}"


def _span(ends: Sequence[float] | None, digits: int, *, sign: bool = False) -> str:
    if ends is None:
        return "not timed in turns"
    form = f"{'+' if sign else ''}.{digits}f"
    return " to ".join(format(end, form) for end in ends)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
