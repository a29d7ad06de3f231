"""The output of the commands about devices: tables, and the entries of the JSON documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.console.tables import SHORT_DIGEST, columns, duration, figure, size, table, with_interval
from pipeline.devices.measuring import DeviceMeasurement, lasting
from pipeline.errors import KdpipeError
from pipeline.running.key_facts import resolve
from stages import DEVICE_SOFTWARE


def device_in_words(facts: Mapping[str, Any]) -> str:
    """Return a table of a device's facts.

    Args:
        facts: The facts with the device's `name`, `url` and `targets`.
    """
    machine, folder = facts["machine"], facts["folder"]
    gpu = facts["gpu"].get("name") or facts["gpu"]["error"]
    access = "" if folder["writable"] else ", which cannot be written"
    rows = [
        ["device", f"{facts['name']}  {facts['url']}"],
        ["board", facts["board"] or "not reported"],
        ["processor", f"{machine['cpu']}, {machine['cores']} cores, {machine['architecture']}"],
        ["memory", f"{machine['memory_gib']} GiB"],
        ["GPU", gpu],
        ["system", machine["system"]],
        ["disk", f"{size(folder['free_bytes'])} free for {folder['path']}{access}"],
        ["Python", f"{facts['python']['version']}  {facts['python']['executable']}"],
        *resolve(DEVICE_SOFTWARE)(facts),
        *(
            ["target", f"{target['target']}: {target['why_not'] or 'can be measured'}"]
            for target in facts["targets"]
        ),
    ]
    return columns(rows, "ll")


def measured_in_words(measurement: DeviceMeasurement) -> str:
    """Return a device's scorecard as a table, then what was not measured and the scorecard's path."""
    scorecard = _scorecard(measurement)
    rows = [_row(row) for row in scorecard["rows"] if row["latency"]]
    header = (
        "target",
        "top-1 % [95 %]",
        "agreement",
        "p50 ms [95 %]",
        "p90 ms",
        "p99 ms",
        "images/s",
        "size",
        "memory",
        "golden outputs",
    )
    how = "cached" if measurement.status == "hit" else f"measured in {duration(measurement.seconds)}"
    board = scorecard["device"]["board"] or scorecard["device"]["machine"]["cpu"]
    lines = [f"{measurement.name}: {board}, {how}", table(header, rows, "lrrrrrrrrl")]
    for row in scorecard["rows"]:
        if row["flags"]:
            lines.append(f"{row['target']}: {', '.join(row['flags'])}")
        if not row["latency"]:
            status = "built, but not measured" if row["built"] else "not measured"
            lines.append(f"{row['target']} {status}: {row['why_not']}")
        elif row["accuracy_why_not"]:
            lines.append(f"{row['target']}: top-1 not measured: {row['accuracy_why_not']}")
    return "\n".join([*lines, f"scorecard  {measurement.path}/scorecard.json"])


def measured_entry(measurement: DeviceMeasurement) -> dict[str, Any]:
    """Return a device's entry in the JSON document: `rows` of its scorecard, `error` only if it failed."""
    entry: dict[str, Any] = {
        "name": measurement.name,
        "url": measurement.url,
        "status": measurement.status,
        "key": measurement.key,
        "path": str(measurement.path) if measurement.path else None,
        "seconds": round(measurement.seconds, 3),
        "facts": lasting(measurement.facts) if measurement.facts else None,
        "rows": [],
    }
    if measurement.error is not None:
        return {**entry, "error": error_entry(measurement.error)}
    return {**entry, "rows": _scorecard(measurement)["rows"]}


def error_entry(error: KdpipeError) -> dict[str, Any]:
    """Return an error's entry in the JSON document, with its exit code."""
    return {**error.as_json(), "exit_code": error.exit_code}


def releases_in_words(document: Mapping[str, Any]) -> str:
    """Return a table of the releases on a device.

    Args:
        document: What `pipeline.devices.shipping.releases` returns.
    """
    rows = [
        [
            "*" if release["current"] else "",
            release["digest"][:SHORT_DIGEST],
            release["name"],
            release["default_target"],
            size(release["size_bytes"]),
            "a rollback goes here" if release["digest"] == document["before"] else "",
        ]
        for release in document["releases"]
    ]
    if not rows:
        return "nothing was shipped there yet"
    return table(("", "release", "profile", "default target", "size", ""), rows, "llllrl")


def shipped_in_words(name: str, document: Mapping[str, Any]) -> str:
    """Return the current release, the one before and those that were removed, as lines.

    Args:
        name: The device's name.
        document: What `ship` or `roll_back` of `pipeline.devices.shipping` returns.
    """
    previous = document["previous"]
    lines = [f"current on {name}: {document['current'][:SHORT_DIGEST]}"]
    if previous and previous != document["current"]:
        lines.append(f"before: {previous[:SHORT_DIGEST]}")
    if document["removed"]:
        lines.append("removed: " + ", ".join(digest[:SHORT_DIGEST] for digest in document["removed"]))
    return "\n".join(lines)


def _scorecard(measurement: DeviceMeasurement) -> dict[str, Any]:
    assert measurement.path is not None
    scorecard: dict[str, Any] = json.loads((measurement.path / "scorecard.json").read_text(encoding="utf-8"))
    return scorecard


def _row(row: Mapping[str, Any]) -> list[str]:
    latency, golden, memory = row["latency"][0], row["golden"], row["peak_memory_bytes"]
    agreement = row["agreement_with_host"]
    return [
        row["target"],
        "-" if row["top1"] is None else with_interval(row["top1"], row["top1_ci"], 2),
        "-" if agreement is None else f"{agreement:.2f} %",
        with_interval(latency["p50_ms"], latency["p50_ci_ms"], 3),
        figure(latency["p90_ms"], 3),
        figure(latency["p99_ms"], 3),
        figure(row["throughput_ips"], 1),
        "-" if row["size_bytes"] is None else size(row["size_bytes"]),
        "-" if memory is None else size(memory),
        "none" if golden is None else f"{golden['agreement']:.0f} % alike",
    ]
