"""Choose the target to ship: one function for scorecard, bundle, report and `kdpipe pick`. Light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCURACY_BUDGET_POINTS = 1.0
"""Top-1 that a target may lose where no gate of the profile limits accuracy or its drop."""

SAME_SPEED = 0.02
"""Two p50 that differ by less than this share count as equal, whatever their intervals are: each comes from
one process, and another process of the same file differs by as much."""

LISTED_LAYERS = 3
"""How many layers that stayed in float are listed; the others are only counted."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Choice:
    """The choice among the targets that may ship.

    Attributes:
        best: The target to ship.
        fastest: The fastest target.
        alike: The targets that are as fast as the fastest, itself included.
        in_turns: Whether the fastest has not the lowest p50, but was proven faster by timing in turns.
    """

    best: Row
    fastest: Row
    alike: Sequence[Row]
    in_turns: bool


def pick(
    rows: Sequence[Row],
    *,
    float_top1: float,
    judgements: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Choose the target to ship, with the reason, and the reasons against the others.

    The choice is the fastest by p50 at batch 1 (at the first batch that all targets ran, if one did not run
    batch 1) of the targets that passed every gate; a target with an undecided gate is chosen only if none
    passed all. Of the targets that are as fast, it is the most accurate, then the smallest. A fp16, bf16 or
    int8 file never ships if it was measured as slower than fp32 of the same runtime (by timing in turns; if
    the two were not timed in turns, if its p50 is not lower), or if it loses more accuracy against it than a
    gate allows, or than `ACCURACY_BUDGET_POINTS` without such a gate.

    Args:
        rows: The rows of the scorecard.
        float_top1: Accuracy of the float student in PyTorch, in per cent.
        judgements: The judgements of the profile's gates.
        comparisons: The scorecard's pairs of targets that were timed in turns.

    Returns:
        `target` (None: no target may ship), `reason`, `undecided` (the target's undecided gates, a sentence
        each), `rejected` and `unmeasured` (lists of target and why), and `front` (the Pareto front by p50,
        top-1 and size).
    """
    student = [row for row in rows if row["model"] == "student"]
    measured = _at_one_batch([row for row in student if row["top1"] is not None and headline(row)])
    compared = {row["target"] for row in measured}
    why = {row["target"]: _why_not(row, measured, float_top1, judgements, comparisons) for row in measured}
    allowed = [row for row in measured if not why[row["target"]]]
    doubts = {row["target"]: _sentences(judgements, row["target"], "undecided") for row in allowed}
    sure = [row for row in allowed if not doubts[row["target"]]]
    choice = _fastest(sure or allowed, comparisons)
    if choice:
        for row in allowed:
            why[row["target"]] = _why_second(row, choice, doubts, comparisons, one_is_sure=bool(sure))
    return {
        "target": choice.best["target"] if choice else None,
        "reason": _reason(choice, judgements) if choice else _why_none(student, measured),
        "undecided": doubts[choice.best["target"]] if choice else [],
        "rejected": [
            {"target": row["target"], "why": why[row["target"]]}
            for row in measured
            if not (choice and row is choice.best)
        ],
        "unmeasured": [
            {"target": row["target"], "why": row["why_not"] or _not_measured(row, measured)}
            for row in student
            if row["target"] not in compared
        ],
        "front": front(measured),
    }


def headline(row: Row) -> Mapping[str, Any] | None:
    """Return the main latency entry of a row: batch 1 if it has it, else the first."""
    entries = row["latency"]
    return next((entry for entry in entries if entry["batch"] == 1), entries[0] if entries else None)


def _at_one_batch(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that can be compared, each with only one latency entry.

    That is batch 1 if all rows have it, else the first batch size and thread count that all have, else the
    one that most have.
    """
    counts = Counter((entry["batch"], entry["threads"]) for row in rows for entry in row["latency"])
    if not counts:
        return []
    chosen = max(counts, key=lambda combination: (counts[combination], combination[0] == 1))
    return [
        {**row, "latency": [entry]}
        for row in rows
        for entry in row["latency"]
        if (entry["batch"], entry["threads"]) == chosen
    ]


def _not_measured(row: Row, measured: Sequence[Row]) -> str:
    timed = row["top1"] is not None and row["latency"]
    entry = headline(measured[0]) if measured and timed else None
    return f"not measured at batch {entry['batch']}, unlike the others" if entry else "not measured"


def front(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the Pareto front: no other target is as fast, as accurate and as small, and better in one."""
    entries = []
    for row in rows:
        own = _costs(row)
        if not any(_beats(_costs(other), own) for other in rows):
            entries.append(
                {
                    "target": row["target"],
                    "p50_ms": own[0],
                    "top1": row["top1"],
                    "size_bytes": row["size_bytes"],
                }
            )
    return sorted(entries, key=lambda entry: float(entry["p50_ms"]))


def _costs(row: Row) -> tuple[float, float, float]:
    return _p50(row), -row["top1"], row["size_bytes"] or 0


def _beats(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own, strict=True))


def _p50(row: Row) -> float:
    entry = headline(row)
    return float(entry["p50_ms"]) if entry else 0.0


def _why_not(
    row: Row,
    measured: Sequence[Row],
    float_top1: float,
    judgements: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
) -> str:
    """Return why a target must not ship; empty if it may."""
    missed = _sentences(judgements, row["target"], "missed")
    if missed:
        return "misses a gate: " + "; ".join(missed)
    allowed = _allowed_drop(judgements, row["target"])
    lost = float_top1 - row["top1"]
    if allowed is None and lost > ACCURACY_BUDGET_POINTS:
        return f"loses {lost:.2f} points against the float student{_left_float(row)}"
    fp32 = next(
        (other for other in measured if other["runtime"] == row["runtime"] and other["precision"] == "fp32"),
        None,
    )
    if fp32 is None or fp32 is row:
        return ""
    timed = _in_turns(fp32, row, comparisons)
    ratio = timed["ratio"] if timed else _p50(row) / _p50(fp32)
    if timed["verdict"] == "slower" if timed else ratio >= 1.0:
        return f"is not faster than {fp32['target']} here ({ratio:.2f} times its p50){_left_float(row)}"
    lost = fp32["top1"] - row["top1"]
    if lost > (ACCURACY_BUDGET_POINTS if allowed is None else allowed):
        return f"loses {lost:.2f} points against {fp32['target']}{_left_float(row)}"
    return ""


def _left_float(row: Row) -> str:
    """Return how many layers of a rejected INT8 row computed in float, as part of a sentence."""
    names = row.get("float_layers")
    if row["precision"] != "int8" or names is None:
        return ""
    if not names:
        return "; none of its layers stayed in float"
    listed = ", ".join(names[:LISTED_LAYERS]) + (", …" if len(names) > LISTED_LAYERS else "")
    return f"; {len(names)} of its layers stayed in float ({listed})"


def _allowed_drop(judgements: Sequence[Mapping[str, Any]], target: str) -> float | None:
    """Return the largest loss of accuracy that the gates allow, in points; None if no gate limits it.

    A gate on accuracy itself allows any drop down to its limit.
    """
    own = [each for each in judgements if each["target"] == target and each["value"] is not None]
    drops = [
        max(0.0, float(judgement["limit"])) for judgement in own if judgement["metric"] == "accuracy_drop"
    ]
    if drops:
        return min(drops)
    return 100.0 if any(judgement["metric"] == "accuracy" for judgement in own) else None


def _sentences(judgements: Sequence[Mapping[str, Any]], target: str, status: str) -> list[str]:
    return [
        judgement["said"].removeprefix(f"{target}: ")
        for judgement in judgements
        if judgement["target"] == target and judgement["status"] == status
    ]


def _in_turns(first: Row, second: Row, comparisons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the comparison of two of the student's targets timed in turns, at the headline's batch."""
    entry = headline(first) or {}
    pair = (("student", first["target"]), ("student", second["target"]), entry["batch"], entry["threads"])
    for comparison in comparisons:
        sides = [(comparison[side]["model"], comparison[side]["target"]) for side in ("first", "second")]
        if (*sides, comparison["batch"], comparison["threads"]) == pair:
            return comparison
    return None


def _fastest(rows: Sequence[Row], comparisons: Sequence[Mapping[str, Any]]) -> _Choice | None:
    """Choose by speed, then accuracy, then size."""
    if not rows:
        return None
    lowest = min(rows, key=_p50)
    ratios = {row["target"]: _faster_in_turns(lowest, row, comparisons) for row in rows}
    quicker = [row for row in rows if ratios[row["target"]]]
    fastest = min(quicker, key=lambda row: ratios[row["target"]] or 1.0, default=lowest)
    alike = [row for row in rows if _same_speed(fastest, row, comparisons)]
    best = min(alike, key=lambda row: (-row["top1"], row["size_bytes"] or 0, _p50(row)))
    return _Choice(best, fastest, alike, in_turns=bool(quicker))


def _faster_in_turns(first: Row, second: Row, comparisons: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the second's p50 over the first's if timing in turns proved the second faster."""
    timed = _in_turns(first, second, comparisons)
    return float(timed["ratio"]) if timed and timed["verdict"] == "faster" else None


def _same_speed(first: Row, row: Row, comparisons: Sequence[Mapping[str, Any]]) -> bool:
    timed = _in_turns(first, row, comparisons) or _in_turns(row, first, comparisons)
    if timed and row is not first:
        return bool(timed["verdict"] == "cannot tell")
    return _span(row)[0] <= _span(first)[1] or _p50(row) <= _p50(first) * (1.0 + SAME_SPEED)


def _span(row: Row) -> tuple[float, float]:
    entry = headline(row) or {}
    low, high = entry.get("p50_ci_ms") or (_p50(row), _p50(row))
    return low, high


def _why_second(
    row: Row,
    choice: _Choice,
    doubts: Mapping[str, list[str]],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    one_is_sure: bool,
) -> str:
    best, fastest = choice.best, choice.fastest
    if one_is_sure and doubts[row["target"]]:
        return "has an undecided gate: " + "; ".join(doubts[row["target"]])
    if row not in choice.alike:
        ratio = _faster_in_turns(row, fastest, comparisons)
        if ratio:
            return f"is slower: timed in turns, {fastest['target']} takes {ratio:.2f} times its p50"
        return f"is slower: p50 {_p50(row):.3f} ms against {_p50(fastest):.3f} ms"
    if row["top1"] < best["top1"]:
        than = f"{row['top1']:.2f} % against {best['top1']:.2f} %"
        return f"is as fast within the measurement's precision, but less accurate: {than}"
    if (row["size_bytes"] or 0) > (best["size_bytes"] or 0):
        return "is as fast within the measurement's precision and as accurate, but larger"
    return "is as fast within the measurement's precision, as accurate and as large"


def _reason(choice: _Choice, judgements: Sequence[Mapping[str, Any]]) -> str:
    best, alike = choice.best, choice.alike
    entry = headline(best) or {}
    threads = f"{entry.get('threads')} thread{'s' if entry.get('threads') != 1 else ''}"
    at = f"({_p50(best):.3f} ms at batch {entry.get('batch')}, {threads})"
    own = [judgement for judgement in judgements if judgement["target"] == best["target"]]
    if not own:
        among = f"of the targets within {ACCURACY_BUDGET_POINTS:g} point of the float student"
    elif all(judgement["status"] == "passed" for judgement in own):
        among = f"of the targets that passed {'every gate' if len(own) > 1 else 'the gate'} on them"
    else:
        among = "of the targets that missed no gate"
    others = [row["target"] for row in alike if row is not best]
    if not others:
        return f"{'fastest, as timed in turns' if choice.in_turns else 'lowest p50'} {at} {among}"
    tied, fastest = ", ".join(others), "that of the fastest" if choice.in_turns else "the lowest"
    better = next((row for row in alike if row is not best and row["top1"] < best["top1"]), None)
    kind = "most accurate" if better else "smallest"
    return f"{kind} {at} {among} whose p50 cannot be distinguished from {fastest} (like {tied})"


def _why_none(student: Sequence[Row], measured: Sequence[Row]) -> str:
    if measured:
        return "no measured target may ship, for the reasons listed"
    timed = any(headline(row) for row in student)
    return "the accuracy of no target was measured" if timed else "no target was measured"
