"""What the commands about devices tell: tables in words, and the entries of the JSON documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.console.tables import SHORT_DIGEST, columns, duration, figure, size, table, with_interval
from pipeline.devices.measuring import Measured, lasting
from pipeline.errors import KdpipeError
from pipeline.running.plan import resolve
from stages import DEVICE_SOFTWARE


def device_in_words(told: Mapping[str, Any]) -> str:
    """`told`: the facts of a device with its `name`, `url` and `targets`."""
    machine, folder = told["machine"], told["folder"]
    gpu = told["gpu"].get("name") or told["gpu"]["error"]
    access = "" if folder["writable"] else ", which cannot be written"
    rows = [
        ["device", f"{told['name']}  {told['url']}"],
        ["board", told["board"] or "not told"],
        ["processor", f"{machine['cpu']}, {machine['cores']} cores, {machine['architecture']}"],
        ["memory", f"{machine['memory_gib']} GiB"],
        ["GPU", gpu],
        ["system", machine["system"]],
        ["disk", f"{size(folder['free_bytes'])} free for {folder['path']}{access}"],
        ["Python", f"{told['python']['version']}  {told['python']['executable']}"],
        *resolve(DEVICE_SOFTWARE)(told),
        *(["target", f"{one['target']}: {one['why_not'] or 'can be measured'}"] for one in told["targets"]),
    ]
    return columns(rows, "ll")


def measured_in_words(one: Measured) -> str:
    """A device's scorecard; below it what was not measured, and where the artefact lies."""
    found = _scorecard(one)
    rows = [_row(row) for row in found["rows"] if row["latency"]]
    header = (
        "target",
        "top-1 % [95 %]",
        "as here",
        "p50 ms [95 %]",
        "p90 ms",
        "p99 ms",
        "images/s",
        "size",
        "memory",
        "golden outputs",
    )
    how = "cached" if one.status == "hit" else f"measured in {duration(one.seconds)}"
    board = found["device"]["board"] or found["device"]["machine"]["cpu"]
    lines = [f"{one.name}: {board}, {how}", table(header, rows, "lrrrrrrrrl")]
    for row in found["rows"]:
        if row["flags"]:
            lines.append(f"{row['target']}: {', '.join(row['flags'])}")
        if not row["latency"]:
            word = "built, but not measured" if row["built"] else "not measured"
            lines.append(f"{row['target']} {word}: {row['why_not']}")
        elif row["accuracy_why_not"]:
            lines.append(f"{row['target']}: top-1 not measured: {row['accuracy_why_not']}")
    return "\n".join([*lines, f"scorecard  {one.path}/scorecard.json"])


def measured_entry(one: Measured) -> dict[str, Any]:
    """A device of the JSON document: `rows` as in a scorecard, `error` only if it failed."""
    entry: dict[str, Any] = {
        "name": one.name,
        "url": one.url,
        "status": one.status,
        "key": one.key,
        "path": str(one.path) if one.path else None,
        "seconds": round(one.seconds, 3),
        "facts": lasting(one.facts) if one.facts else None,
        "rows": [],
    }
    if one.error is not None:
        return {**entry, "error": error_entry(one.error)}
    return {**entry, "rows": _scorecard(one)["rows"]}


def error_entry(error: KdpipeError) -> dict[str, Any]:
    return {**error.as_json(), "exit_code": error.exit_code}


def releases_in_words(told: Mapping[str, Any]) -> str:
    rows = [
        [
            "*" if one["current"] else "",
            one["digest"][:SHORT_DIGEST],
            one["name"],
            one["default_target"],
            size(one["size_bytes"]),
            "rollback goes here" if one["digest"] == told["before"] else "",
        ]
        for one in told["releases"]
    ]
    if not rows:
        return "nothing was shipped there yet"
    return table(("", "release", "profile", "default target", "size", ""), rows, "llllrl")


def shipped_in_words(name: str, told: Mapping[str, Any]) -> str:
    before = told["previous"]
    lines = [f"current on {name}: {told['current'][:SHORT_DIGEST]}"]
    if before and before != told["current"]:
        lines.append(f"before: {before[:SHORT_DIGEST]}")
    if told["removed"]:
        lines.append("removed: " + ", ".join(digest[:SHORT_DIGEST] for digest in told["removed"]))
    return "\n".join(lines)


def _scorecard(one: Measured) -> dict[str, Any]:
    assert one.path is not None
    found: dict[str, Any] = json.loads((one.path / "scorecard.json").read_text(encoding="utf-8"))
    return found


def _row(row: Mapping[str, Any]) -> list[str]:
    first, golden, memory = row["latency"][0], row["golden"], row["peak_memory_bytes"]
    alike = row["agreement_with_host"]
    return [
        row["target"],
        "-" if row["top1"] is None else with_interval(row["top1"], row["top1_ci"], 2),
        "-" if alike is None else f"{alike:.2f} %",
        with_interval(first["p50_ms"], first["p50_ci_ms"], 3),
        figure(first["p90_ms"], 3),
        figure(first["p99_ms"], 3),
        figure(row["throughput_ips"], 1),
        "-" if row["size_bytes"] is None else size(row["size_bytes"]),
        "-" if memory is None else size(memory),
        "none to compare with" if golden is None else f"{golden['agreement']:.0f} % alike",
    ]
