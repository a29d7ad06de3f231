"""The target to ship: one function, for the scorecard, the bundle, the report and `kdpipe pick`. Light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCURACY_BUDGET_POINTS = 1.0
"""Top-1 that a target may lose where no gate of the profile limits accuracy or its drop."""

SAME_SPEED = 0.02
"""Two p50 nearer than this share cannot be told apart, whatever their intervals say: each comes from one
process, and another process of the same file differs by as much."""

NAMED = 3
"""Layers that stayed in float, named before the rest is only counted."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Choice:
    """best: the target to ship. fastest, and alike: those whose p50 cannot be told from its. in_turns: the
    fastest is not the one of the lowest p50, but was proven faster than that one in turns."""

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
    """Names the target to ship, why, and why no other.

    rows, comparisons: of the scorecard; where two targets were timed in turns, that says which is faster.
    float_top1: of the float student by PyTorch, per cent. judgements: of the profile's gates.

    The fastest by p50 at batch 1 (if one did not run that, at the first batch that all ran) of the targets
    that passed every gate (of those with an undecided gate only if none passed all); of those whose p50
    cannot be told from it the most accurate, then the smallest. Never a fp16, bf16 or int8 file that was
    measured as slower than the same runtime's fp32 (in turns; where they were not, one whose p50 is no
    lower), or that loses more accuracy against it than a gate, else `ACCURACY_BUDGET_POINTS`, allows.

    Returns `target` (None: nothing to ship), `reason`, `undecided` (of the target's gates, in words),
    `rejected` (target and why), `unmeasured` (target and why), `front` (the Pareto front by p50, top-1
    and size).
    """
    student = [row for row in rows if row["model"] == "student"]
    measured = _at_one_batch([row for row in student if row["top1"] is not None and headline(row)])
    compared = {row["target"] for row in measured}
    why = {row["target"]: _why_not(row, measured, float_top1, judgements, comparisons) for row in measured}
    fit = [row for row in measured if not why[row["target"]]]
    doubts = {row["target"]: _said(judgements, row["target"], "undecided") for row in fit}
    sure = [row for row in fit if not doubts[row["target"]]]
    choice = _fastest(sure or fit, comparisons)
    if choice:
        for row in fit:
            why[row["target"]] = _why_second(row, choice, doubts, comparisons, one_is_sure=bool(sure))
    return {
        "target": choice.best["target"] if choice else None,
        "reason": _reason(choice, judgements) if choice else _none(student, measured),
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
    """The latency entry that a target is known by: batch 1, else the first, on the first thread count."""
    entries = row["latency"]
    return next((one for one in entries if one["batch"] == 1), entries[0] if entries else None)


def _at_one_batch(rows: Sequence[Row]) -> list[Row]:
    """The rows that can be compared, each with one latency entry alone: at batch 1 if all have it, else at
    the first batch size and thread count that all have, else at those that most have."""
    counts = Counter((one["batch"], one["threads"]) for row in rows for one in row["latency"])
    if not counts:
        return []
    chosen = max(counts, key=lambda place: (counts[place], place[0] == 1))
    return [
        {**row, "latency": [one]}
        for row in rows
        for one in row["latency"]
        if (one["batch"], one["threads"]) == chosen
    ]


def _not_measured(row: Row, measured: Sequence[Row]) -> str:
    timed = row["top1"] is not None and row["latency"]
    entry = headline(measured[0]) if measured and timed else None
    return f"not measured at batch {entry['batch']}, as the others are" if entry else "not measured"


def front(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The targets that no other beats: none is as fast, as accurate and as small, and better in one."""
    found = []
    for row in rows:
        own = _costs(row)
        if not any(_beats(_costs(other), own) for other in rows):
            found.append(
                {
                    "target": row["target"],
                    "p50_ms": own[0],
                    "top1": row["top1"],
                    "size_bytes": row["size_bytes"],
                }
            )
    return sorted(found, key=lambda one: float(one["p50_ms"]))


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
    """Why a target must not ship; empty if it may."""
    missed = _said(judgements, row["target"], "missed")
    if missed:
        return "misses a gate: " + "; ".join(missed)
    allowed = _allowed_drop(judgements, row["target"])
    lost = float_top1 - row["top1"]
    if allowed is None and lost > ACCURACY_BUDGET_POINTS:
        return f"loses {lost:.2f} points against the float student{_left_float(row)}"
    plain = next(
        (one for one in measured if one["runtime"] == row["runtime"] and one["precision"] == "fp32"), None
    )
    if plain is None or plain is row:
        return ""
    turns = _in_turns(plain, row, comparisons)
    ratio = turns["ratio"] if turns else _p50(row) / _p50(plain)
    if turns["verdict"] == "slower" if turns else ratio >= 1.0:
        return f"is not faster than {plain['target']} here ({ratio:.2f} times its p50){_left_float(row)}"
    lost = plain["top1"] - row["top1"]
    if lost > (ACCURACY_BUDGET_POINTS if allowed is None else allowed):
        return f"loses {lost:.2f} points against {plain['target']}{_left_float(row)}"
    return ""


def _left_float(row: Row) -> str:
    """Of an INT8 row that is kept out, how many of its layers computed in float; part of a sentence."""
    names = row.get("float_layers")
    if row["precision"] != "int8" or names is None:
        return ""
    if not names:
        return "; none of its layers stayed in float"
    named = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return f"; {len(names)} of its layers stayed in float ({named})"


def _allowed_drop(judgements: Sequence[Mapping[str, Any]], target: str) -> float | None:
    """The most accuracy that gates let a target lose, in points; None if none of them is about that.

    A gate on accuracy itself bounds it from below and so allows any drop down to there.
    """
    own = [one for one in judgements if one["target"] == target and one["value"] is not None]
    drops = [max(0.0, one["limit"]) for one in own if one["metric"] == "accuracy_drop"]
    if drops:
        return min(drops)
    return 100.0 if any(one["metric"] == "accuracy" for one in own) else None


def _said(judgements: Sequence[Mapping[str, Any]], target: str, status: str) -> list[str]:
    found = [one["said"] for one in judgements if one["target"] == target and one["status"] == status]
    return [sentence.removeprefix(f"{target}: ") for sentence in found]


def _in_turns(first: Row, second: Row, comparisons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """What timing two of the student's targets in turns said of the second, at the headline's batch."""
    entry = headline(first) or {}
    wanted = (("student", first["target"]), ("student", second["target"]), entry["batch"], entry["threads"])
    for one in comparisons:
        names = [(one[side]["model"], one[side]["target"]) for side in ("first", "second")]
        if (*names, one["batch"], one["threads"]) == wanted:
            return one
    return None


def _fastest(rows: Sequence[Row], comparisons: Sequence[Mapping[str, Any]]) -> _Choice | None:
    """What to ship by speed, then accuracy, then size."""
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
    """The second's p50 as a share of the first's if timing in turns proved the second faster."""
    turns = _in_turns(first, second, comparisons)
    return float(turns["ratio"]) if turns and turns["verdict"] == "faster" else None


def _same_speed(first: Row, row: Row, comparisons: Sequence[Mapping[str, Any]]) -> bool:
    turns = _in_turns(first, row, comparisons) or _in_turns(row, first, comparisons)
    if turns and row is not first:
        return bool(turns["verdict"] == "cannot tell")
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
        return f"is as fast, as far as can be told, but less accurate: {than}"
    if (row["size_bytes"] or 0) > (best["size_bytes"] or 0):
        return "is as fast, as far as can be told, and as accurate, but larger"
    return "is as fast, as accurate and as large, as far as can be told"


def _reason(choice: _Choice, judgements: Sequence[Mapping[str, Any]]) -> str:
    best, alike = choice.best, choice.alike
    entry = headline(best) or {}
    threads = f"{entry.get('threads')} thread{'s' if entry.get('threads') != 1 else ''}"
    at = f"({_p50(best):.3f} ms at batch {entry.get('batch')}, {threads})"
    own = [one for one in judgements if one["target"] == best["target"]]
    if not own:
        among = f"of the targets within {ACCURACY_BUDGET_POINTS:g} point of the float student"
    elif all(one["status"] == "passed" for one in own):
        among = f"of the targets that passed {'every gate' if len(own) > 1 else 'the gate'} on them"
    else:
        among = "of the targets that missed no gate"
    others = [row["target"] for row in alike if row is not best]
    if not others:
        return f"{'fastest, as timed in turns' if choice.in_turns else 'lowest p50'} {at} {among}"
    tied, first = ", ".join(others), "fastest's" if choice.in_turns else "lowest"
    better = next((row for row in alike if row is not best and row["top1"] < best["top1"]), None)
    kind = "most accurate" if better else "smallest"
    return f"{kind} {at} {among} whose p50 cannot be told from the {first} (as {tied})"


def _none(student: Sequence[Row], measured: Sequence[Row]) -> str:
    if measured:
        return "no measured target may ship: each has its reason"
    timed = any(headline(row) for row in student)
    return "of no target the accuracy was measured" if timed else "no target was measured"
