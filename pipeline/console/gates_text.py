"""Gates and the target to ship in words, read from the gate's `gates.json` (docs/reference/artefacts.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.console.tables import size, table
from pipeline.junit import fails, title

NO_GATES = "the profile has no gates: nothing is limited, so everything passes"

Found = Mapping[str, Any]


def read_gates(folder: Path) -> dict[str, Any]:
    """The content of the gate stage's `gates.json`."""
    found: dict[str, Any] = json.loads((folder / "gates.json").read_text(encoding="utf-8"))
    return found


def gates_in_words(found: Found) -> list[str]:
    """A table of the judged gates and a line that counts them; one line where there is no gate."""
    judgements = found["judgements"]
    if not judgements:
        return [NO_GATES]
    rows = [[one["status"], one["target"], title(one), _value(one)] for one in judgements]
    lines = table(("gate", "target", "limit", "measured [95 %]"), rows, "llll").splitlines()
    lines += [f"undecided: {one['said']}" for one in judgements if one["status"] == "undecided"]
    counts = [f"{found[status]} {status}" for status in ("passed", "missed", "undecided") if found[status]]
    return [*lines, f"gates: {', '.join(counts)}"]


def pick_in_words(pick: Found, *, label: str = "recommended") -> list[str]:
    """The target to ship, why, and why no other."""
    lines = [f"{label}: {pick['target'] or 'none'}: {pick['reason']}"]
    lines += [f"  undecided: {said}" for said in pick.get("undecided") or ()]
    return lines + [f"  not {one['target']}: {one['why']}" for one in pick.get("rejected") or ()]


def front_in_words(pick: Found) -> list[str]:
    """The Pareto front as a table, and what was not measured."""
    rows = [
        [
            one["target"],
            f"{one['p50_ms']:.3f}",
            f"{one['top1']:.2f}",
            "-" if one["size_bytes"] is None else size(one["size_bytes"]),
        ]
        for one in pick["front"]
    ]
    lines = ["Pareto front (no other target is as fast, as accurate and as small):"] if rows else []
    lines += table(("target", "p50 ms", "top-1 %", "size"), rows, "lrrr").splitlines() if rows else []
    return lines + [f"not measured: {one['target']}: {one['why']}" for one in pick["unmeasured"]]


def device_in_words(entry: Found) -> list[str]:
    """What to ship to one device, and its Pareto front."""
    pick = [f"  {line}" for line in pick_in_words(entry, label="ship")]
    about = f"on the device {entry['device']} ({', '.join(entry['targets'])}):"
    return ["", about, *pick, *(f"  {line}" for line in front_in_words(entry))]


def github_annotations(found: Found, places: Mapping[int, str], *, strict: bool) -> list[str]:
    """GitHub's workflow commands: an error for a gate that fails, a warning for an undecided one.

    places: by the gate's number, where the profile sets it ("file:line:column"; else no place is told).
    """
    return [
        f"::{'error' if fails(one, strict=strict) else 'warning'} "
        f"{_properties(one, places.get(one['gate'], ''))}::{_escaped(one['said'])}"
        for one in found["judgements"]
        if one["status"] != "passed"
    ]


def _properties(judgement: Found, place: str) -> str:
    told = {"title": f"gate {judgement['status']}: {judgement['target']}"}
    file, _, position = place.rpartition(":")
    file, _, line = file.rpartition(":")
    if file and line.isdecimal() and position.isdecimal():
        # GitHub takes paths from the root of the checkout, which is where its commands start.
        told = {"file": os.path.relpath(file), "line": line, "col": position, **told}
    return ",".join(f"{name}={_escaped(value, ':,')}" for name, value in told.items())


def _escaped(text: str, also: Iterable[str] = "") -> str:
    for letter in ("%", "\r", "\n", *also):
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text


def _value(one: Found) -> str:
    if one["value"] is None:
        return "-"
    span = f" [{one['interval'][0]:.4g}, {one['interval'][1]:.4g}]" if one["interval"] else ""
    return f"{one['value']:.4g}{span} {one['unit']}"
