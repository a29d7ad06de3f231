"""Gates and the target to ship as text, read from the gate's `gates.json` (docs/reference/artefacts.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.console.tables import size, table
from pipeline.junit import fails, title

NO_GATES = "the profile has no gates: nothing is limited, so everything passes"

Document = Mapping[str, Any]


def read_gates(folder: Path) -> dict[str, Any]:
    """Read the gate stage's `gates.json`."""
    document: dict[str, Any] = json.loads((folder / "gates.json").read_text(encoding="utf-8"))
    return document


def gates_in_words(document: Document) -> list[str]:
    """Return a table of the judged gates and a line that counts them; one line if there is no gate."""
    judgements = document["judgements"]
    if not judgements:
        return [NO_GATES]
    rows = [
        [judgement["status"], judgement["target"], title(judgement), _value(judgement)]
        for judgement in judgements
    ]
    lines = table(("gate", "target", "limit", "measured [95 %]"), rows, "llll").splitlines()
    lines += [
        f"undecided: {judgement['said']}" for judgement in judgements if judgement["status"] == "undecided"
    ]
    counts = [
        f"{document[status]} {status}" for status in ("passed", "missed", "undecided") if document[status]
    ]
    return [*lines, f"gates: {', '.join(counts)}"]


def pick_in_words(pick: Document, *, label: str = "recommended") -> list[str]:
    """Return the target to ship, the reason, and why each other target was rejected."""
    lines = [f"{label}: {pick['target'] or 'none'}: {pick['reason']}"]
    lines += [f"  undecided: {sentence}" for sentence in pick.get("undecided") or ()]
    return lines + [f"  not {target['target']}: {target['why']}" for target in pick.get("rejected") or ()]


def front_in_words(pick: Document) -> list[str]:
    """Return the Pareto front as a table, and the targets that were not measured."""
    rows = [
        [
            target["target"],
            f"{target['p50_ms']:.3f}",
            f"{target['top1']:.2f}",
            "-" if target["size_bytes"] is None else size(target["size_bytes"]),
        ]
        for target in pick["front"]
    ]
    lines = ["Pareto front (no other target is as fast, as accurate and as small):"] if rows else []
    lines += table(("target", "p50 ms", "top-1 %", "size"), rows, "lrrr").splitlines() if rows else []
    return lines + [f"not measured: {target['target']}: {target['why']}" for target in pick["unmeasured"]]


def device_in_words(entry: Document) -> list[str]:
    """Return the target to ship to one device, and its Pareto front."""
    pick = [f"  {line}" for line in pick_in_words(entry, label="ship")]
    about = f"on the device {entry['device']} ({', '.join(entry['targets'])}):"
    return ["", about, *pick, *(f"  {line}" for line in front_in_words(entry))]


def github_annotations(document: Document, places: Mapping[int, str], *, strict: bool) -> list[str]:
    """Return GitHub's workflow commands: an error for a gate that fails, a warning for an undecided one.

    Args:
        document: The content of `gates.json`.
        places: By the gate's number, where the profile sets it ("file:line:column").
        strict: Whether an undecided gate fails.
    """
    return [
        f"::{'error' if fails(judgement, strict=strict) else 'warning'} "
        f"{_properties(judgement, places.get(judgement['gate'], ''))}::{_escaped(judgement['said'])}"
        for judgement in document["judgements"]
        if judgement["status"] != "passed"
    ]


def _properties(judgement: Document, place: str) -> str:
    properties = {"title": f"gate {judgement['status']}: {judgement['target']}"}
    file, _, position = place.rpartition(":")
    file, _, line = file.rpartition(":")
    if file and line.isdecimal() and position.isdecimal():
        # GitHub takes paths from the root of the checkout, which is where its commands start.
        properties = {"file": os.path.relpath(file), "line": line, "col": position, **properties}
    return ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())


def _escaped(text: str, also: Iterable[str] = "") -> str:
    for letter in ("%", "\r", "\n", *also):
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text


def _value(judgement: Document) -> str:
    if judgement["value"] is None:
        return "-"
    interval = judgement["interval"]
    span = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    return f"{judgement['value']:.4g}{span} {judgement['unit']}"
