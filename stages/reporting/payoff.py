"""Does a lower precision pay? Each target of the student against fp32 of the same runtime: how much faster,
what it costs in accuracy, and where it does not pay, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.statistics.intervals import paired_difference

MOST_NAMES = 5

Row = Mapping[str, Any]


def rows(scorecard: Mapping[str, Any], build: Mapping[str, Any], measured: Path) -> list[dict[str, Any]]:
    """An entry a measured target of the student that is not fp32, JSON-ready: `target`, `against`, `speed`
    (ratio of the p50, its interval, `faster`, `slower` or `cannot tell`), `accuracy` (points against the
    fp32 target, image by image), `pays` (a verdict in words) and `why` (sentences, if it does not).

    build: build.json; measured: the folder of measure's artefact, with every target's predictions.
    """
    student = [row for row in scorecard["rows"] if row["model"] == "student" and row["top1"] is not None]
    built = {one["target"]: one["facts"] for one in build["targets"] if one["model"] == "student"}
    found = []
    for row in student:
        plain = next(
            (one for one in student if one["runtime"] == row["runtime"] and one["precision"] == "fp32"), None
        )
        if row["precision"] == "fp32" or plain is None:
            continue
        speed = _speed(plain, row, scorecard["comparisons"])
        accuracy = _accuracy(plain, row, measured)
        pays = _verdict(speed["verdict"], accuracy["verdict"])
        found.append(
            {
                "target": row["target"],
                "against": plain["target"],
                "speed": speed,
                "accuracy": accuracy,
                "size_ratio": round(row["size_bytes"] / plain["size_bytes"], 3),
                "pays": pays,
                "why": [] if pays == "pays" else reasons(row, built.get(row["target"], {})),
            }
        )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries as cells of the page's table."""
    return [
        {
            "target": one["target"],
            "against": one["against"],
            "cells": [
                f"{one['speed']['ratio']:.3f}" if one["speed"]["ratio"] else "–",
                _span(one["speed"]["ci"], 3),
                f"{one['accuracy']['points']:+.2f}",
                _span(one["accuracy"]["ci"], 2, sign=True),
                f"{one['size_ratio']:.2f}",
            ],
            "verdict": one["pays"],
            "pays": one["pays"] == "pays",
            "why": one["why"],
        }
        for one in found
    ]


def reasons(row: Row, facts: Mapping[str, Any]) -> list[str]:
    """What is known of why a precision brought little, from what the builder and the runtime told.

    row: of the scorecard; facts: the target's in build.json.
    """
    told = {**facts, **row["facts"]}
    found = [*_force(row, told), *_integers(told), *_layers(row, told), *_half(row, told)]
    return found or [f"{row['runtime']} does not tell which layers run in {row['precision']}"]


def _force(row: Row, told: Mapping[str, Any]) -> list[str]:
    effective = str(row["effective_precision"] or told.get("effective_precision") or row["precision"])
    if row["precision"] in effective.split("+"):
        return []
    return [f"nothing runs in {row['precision']}: the precision in force is {effective}"]


def _integers(told: Mapping[str, Any]) -> list[str]:
    """Of ONNX Runtime and OpenVINO."""
    found = []
    if "integer_operators" in told:
        found.append(f"{told['integer_operators']} of {told['operators']} operators run in integers")
    if told.get("float_layers"):
        found.append(f"{told['float_layers']} layers with weights stayed in floats")
    if told.get("conversions"):
        found.append(f"{told['conversions']} operators only convert between integers and floats")
    if "integer_layers" in told:
        found.append(f"{told['integer_layers']} layers with weights run in integers")
    return found


def _layers(row: Row, told: Mapping[str, Any]) -> list[str]:
    """Of TensorRT's engine inspector."""
    if "engine_layers" not in told:
        return []
    layers = told["engine_layers"]
    if not layers:
        return [f"which layers run in {row['precision']} is not known: {told['engine_layers_why_not']}"]
    counts = layers.get("weighted") or {}
    found = [f"layers with weights by type: {_counts(counts)}"] if counts else []
    if row["precision"] == "int8" and layers["weighted_in_floats"]:
        names = layers["weighted_in_floats_named"]
        more = layers["weighted_in_floats"] - min(len(names), MOST_NAMES)
        listed = ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more else "")
        found.append(f"{layers['weighted_in_floats']} stayed in floats: {listed}")
    reformats = (layers.get("by_kind") or {}).get("Reformat", 0)
    if reformats:
        found.append(f"{reformats} layers only change format or type")
    return found


def _half(row: Row, told: Mapping[str, Any]) -> list[str]:
    """Of the conversion of a graph to fp16 or bf16."""
    name = row["precision"]
    report = told.get(name)
    if not isinstance(report, Mapping) or f"{name}_nodes" not in report:
        return []
    found = [f"{report[f'{name}_nodes']} of {report['nodes']} nodes are {name}, the others stayed in fp32"]
    ranged = len(report.get("fp32_for_range") or ())
    return [*found, *([f"{ranged} of them for their range"] if ranged else [])]


def _speed(plain: Row, row: Row, comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As timed in turns; else the two p50, which cannot tell."""
    sides = {"model": "student", "target": plain["target"]}, {"model": "student", "target": row["target"]}
    for one in comparisons:
        if (one["first"], one["second"]) == sides:
            return {
                "ratio": one["ratio"],
                "ci": one["ratio_ci"],
                "verdict": one["verdict"],
                "in_turns": True,
                "flags": one["flags"],
            }
    own, its = (entry["latency"][0]["p50_ms"] if entry["latency"] else None for entry in (row, plain))
    ratio = round(own / its, 4) if own and its else None
    return {"ratio": ratio, "ci": None, "verdict": "cannot tell", "in_turns": False, "flags": []}


def _accuracy(plain: Row, row: Row, measured: Path) -> dict[str, Any]:
    folder = measured / "predictions"
    labels = np.load(folder / "labels.npy")
    right, before = (np.load(folder / f"student-{one['target']}.npy") == labels for one in (row, plain))
    return paired_difference(right, before)


def _verdict(speed: str, accuracy: str) -> str:
    costs = " and less accurate" if accuracy == "worse" else ""
    if speed == "faster":
        return f"faster{costs}" if costs else "pays"
    return f"does not pay: {'slower' if speed == 'slower' else 'no faster, as far as can be told'}{costs}"


def _span(ends: Sequence[float] | None, digits: int, *, sign: bool = False) -> str:
    if ends is None:
        return "not timed in turns"
    form = f"{'+' if sign else ''}.{digits}f"
    return " to ".join(format(end, form) for end in ends)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
