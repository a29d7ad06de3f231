"""The main figures of a stage as text, read from its artefact.

Only the documented content of the artefacts is read (docs/reference/artefacts.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.console.gates_text import gates_in_words, pick_in_words, read_gates
from pipeline.console.tables import amount, duration, figure, size, table, with_interval

MODELS = ("teacher", "baseline", "student")
LIST_MAX = 6
DEPTH_MAX = 2


def stage_figures(name: str, folder: Path, metrics: Mapping[str, Any]) -> str:
    """Return the main figures of a finished stage; `metrics` are those that the stage returned."""
    special: dict[str, Callable[[Path], str]] = {"evaluate": evaluation, "measure": scorecard, "gate": gates}
    if name in special:
        return special[name](folder)
    rows = [[key, value] for key, value in _flat(metrics)]
    return table(("figure", "value"), rows, "ll") if rows else ""


def evaluation(folder: Path) -> str:
    """Return the metrics of teacher, baseline and student, and the gain of distillation."""
    report = _read(folder / "metrics.json")
    rows = []
    for name in MODELS:
        model = report.get(name)
        if model:
            rows.append(
                [
                    "student alone" if name == "baseline" else name,
                    with_interval(model["top1"], model["top1_ci"]),
                    figure(model["top5"]),
                    figure(model["loss"], 4),
                    figure(model["ece"], 4),
                    figure(model["agreement_with_teacher"]),
                    amount(model["parameters"]),
                    amount(model["macs"]),
                ]
            )
    header = ("model", "top-1 % [95 %]", "top-5 %", "loss", "ECE", "agreement %", "parameters", "MACs")
    lines = [table(header, rows, "llrrrrrr"), "", f"{report['images']:,} test images"]
    if report.get("distillation"):
        lines.append(distillation(report["distillation"]))
    return "\n".join(lines)


def gates(folder: Path) -> str:
    """Return every judged gate, and the target to ship."""
    document = read_gates(folder)
    return "\n".join([*gates_in_words(document), "", *pick_in_words(document["pick"])])


def scorecard(folder: Path, gated: Path | None = None) -> str:
    """Return every target in a table; below it the missing ones, the gain, the gates.

    Args:
        folder: The artefact of `measure`.
        gated: The artefact of `gate`: the judged gates and the target to ship. Without it both are left out.
    """
    card = _read(folder / "scorecard.json")
    rows = [_scorecard_row(row) for row in card["rows"] if row["top1"] is not None]
    header = (
        "model",
        "target",
        "top-1 % [95 %]",
        "agreement %",
        "p50 ms [95 %]",
        "p90 ms",
        "p99 ms",
        "speed-up",
        "size",
        "memory",
    )
    lines = [table(header, rows, "lllrlrrrrr"), *_how_measured(card["rows"])]
    lines += compared(card.get("comparisons") or ())
    absent = [row for row in card["rows"] if row["top1"] is None]
    if absent:
        lines += ["", "not built or not measured:"]
    for row in absent:
        lines.append(f"  {row['target']}: {row['why_not']}")
        if row.get("hint"):
            lines.append(f"    hint: {row['hint']}")
    lines.append("")
    if card.get("distillation"):
        lines.append(distillation(card["distillation"]))
    else:
        lines.append("the gain of distillation was not measured: set distill.baseline to true")
    if gated:
        judged = read_gates(gated)
        lines += ["", *gates_in_words(judged), ""] if judged["gates"] else []
        lines += pick_in_words(judged["pick"])
    return "\n".join(lines)


def compared(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each pair of targets that were timed in turns."""
    lines = ["", "timed in turns:"] if pairs else []
    for pair in pairs:
        first, second = (f"{side['model']} {side['target']}" for side in (pair["first"], pair["second"]))
        low, high = pair["ratio_ci"]
        verdict = (
            f"cannot tell {second} from {first}"
            if pair["verdict"] == "cannot tell"
            else f"{second} is {pair['verdict']} than {first}"
        )
        flags = ", ".join(pair.get("flags") or ())
        doubts = f" ({flags})" if flags else ""
        lines.append(f"  {verdict}: {pair['ratio']:.3f} [{low:.3f}, {high:.3f}] times its p50{doubts}")
    return lines


def distillation(gain: Mapping[str, Any]) -> str:
    """Return the gain of distillation, with its interval and verdict, in one line."""
    low, high = gain["gain_ci"]
    return (
        f"distillation gave {gain['gain_points']:+.2f} points [{low:+.2f}, {high:+.2f}] "
        f"over the same student alone (p = {gain['p_value']:.3g}): {gain['verdict']}"
    )


def shipped(name: str, folder: Path) -> list[str]:
    """Return a line for each file that a user opens or copies: the bundle's archive, the report."""
    if name == "package":
        return [f"bundle  {file}" for file in sorted(folder.glob("*.tar.zst"))]
    if name == "report" and (folder / "report.html").exists():
        return [f"report  {folder / 'report.html'}"]
    return []


def _scorecard_row(row: Mapping[str, Any]) -> list[str]:
    first = row["latency"][0] if row["latency"] else {}
    speedup, memory = row.get("speedup"), row["peak_memory_bytes"]
    return [
        row["model"],
        row["target"],
        with_interval(row["top1"], row["top1_ci"]),
        figure(row["agreement"]),
        with_interval(first.get("p50_ms"), first.get("p50_ci_ms"), 3),
        figure(first.get("p90_ms"), 3),
        figure(first.get("p99_ms"), 3),
        "-" if speedup is None else f"{speedup:.2f}x",
        "-" if row["size_bytes"] is None else size(row["size_bytes"]),
        "-" if memory is None else size(memory),
    ]


def _how_measured(rows: list[dict[str, Any]]) -> list[str]:
    """Return the batch and threads of the table's latency, and the flags of its rows."""
    lines = []
    first = next((row["latency"][0] for row in rows if row["latency"]), None)
    if first:
        images = "image" if first["batch"] == 1 else "images"
        threads = "thread" if first["threads"] == 1 else "threads"
        lines = ["", f"latency of a batch of {first['batch']} {images} on {first['threads']} {threads}"]
    for row in rows:
        flags = row.get("flags") or []
        if flags:
            lines.append(f"{row['model']} {row['target']}: {', '.join(flags)}")
    return lines


def _flat(metrics: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """List scalars and short lists of nested metrics by dotted name."""
    rows: list[tuple[str, str]] = []
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if depth < DEPTH_MAX:
                rows += _flat(value, f"{name}.", depth + 1)
        elif isinstance(value, list | tuple):
            if len(value) <= LIST_MAX and not any(
                isinstance(entry, Mapping | list | tuple) for entry in value
            ):
                rows.append((name, ", ".join(_plain(key, entry) for entry in value) or "none"))
        else:
            rows.append((name, _plain(key, value)))
    return rows


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, int | float):
        if key.endswith("_bytes"):
            return size(value)
        if key == "seconds" or (key.endswith("_s") and not key.endswith("_per_s")):
            return duration(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return str(value)


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document
