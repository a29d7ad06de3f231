"""Make the table of `bench_networks.py`: every target of every network, only from artefacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = "fp32"
"""The precision with which the others of its runtime are timed in turns."""

COLUMNS = (
    "network",
    "target",
    "state",
    "file's error",
    "target's error",
    "agreement %",
    "top-1 change [95 %], points",
    "p50 ms [95 %]",
    "time over fp32's [95 %]",
    "MB",
)

LEGEND = """\
- state: measured; built (and proved if it runs on this machine, but not timed or judged); no: not built. The
  number refers to the reasons below.
- file's error: error of the ONNX file from which the target is built. Float: largest logit difference from
  PyTorch, divided by the logits' standard deviation. INT8: root mean square difference from the float file,
  divided by the logits' spread, on training images that calibration did not use.
- target's error: root mean square logit difference of the built target from that file, divided by the logits'
  spread, on real test images.
- agreement, top-1 change: compared with the student in PyTorch (float32), over all test images; the interval
  is paired, image by image.
- p50: one image, one thread. Time over fp32's: both timed in turns; below 1 is faster than fp32 in the same
  runtime."""


@dataclass(frozen=True)
class Outcome:
    """The run of a network.

    Attributes:
        network: the profile's name.
        folders: the artefact's folder of each finished stage, by name.
        metrics: the metrics of each finished stage, by name.
        fault: the error as a sentence; None if the run finished.
        left_out: targets that the run left out, with the reason.
    """

    network: str
    folders: Mapping[str, Path]
    metrics: Mapping[str, Mapping[str, Any]]
    fault: str | None
    left_out: Mapping[str, str]

    def read(self, stage: str, name: str) -> dict[str, Any] | None:
        """Read a JSON file of a stage's artefact; None if the run did not reach the stage."""
        folder = self.folders.get(stage)
        if folder is None:
            return None
        document: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        return document


@dataclass(frozen=True)
class Row:
    """A target of a network.

    Attributes:
        network: the profile's name.
        target: the target's name.
        cells: the columns from `state` on, without the reason's number.
        why: the reason, or None.
        silent: there are neither figures nor a reason.
    """

    network: str
    target: str
    cells: tuple[str, ...]
    why: str | None
    silent: bool


def rows_of(outcome: Outcome, targets: Sequence[str]) -> list[Row]:
    """Make a row for each target."""
    scorecard = outcome.read("measure", "scorecard.json") or {"rows": [], "comparisons": []}
    measured = {row["target"]: row for row in scorecard["rows"] if row["model"] == "student"}
    built = _built(outcome)
    ratios = _ratios(scorecard["comparisons"])
    rows = []
    for target in targets:
        row = measured.get(target) or built.get(target) or {}
        figures = row.get("top1") is not None and bool(row.get("latency"))
        why = None if figures else _why(outcome, target, row)
        state = "measured" if figures else "built" if row.get("built") else "no"
        cells = (
            state,
            _file_error(outcome, target, row),
            _number(_build_figures(outcome, target).get("relative_to_std")),
            _fixed(row.get("agreement_with_float"), 2),
            _change(row.get("against_float")),
            _p50(row),
            ratios.get(target, ""),
            _fixed(row["size_bytes"] / 1e6, 2) if row.get("size_bytes") else "",
        )
        rows.append(Row(outcome.network, target, cells, why, silent=not figures and not why))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Format the table, the meaning of its columns, and each reason once with its targets."""
    reasons = list(dict.fromkeys(row.why for row in rows if row.why))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        state, *others = row.cells
        if row.why:
            state = f"{state} ({reasons.index(row.why) + 1})"
        lines.append("| " + " | ".join((row.network, row.target, state, *others)) + " |")
    lines += ["", LEGEND, ""]
    if reasons:
        lines += ["Reasons:", ""]
    for number, reason in enumerate(reasons, 1):
        lines.append(f"{number}. {_affected(row for row in rows if row.why == reason)}: {reason}")
    return "\n".join(lines)


def students(outcomes: Sequence[Outcome]) -> str:
    """Format the size and accuracy of the networks, in PyTorch with float32."""
    lines = ["| network | architecture | parameters | million MACs | top-1 % [95 %] |", "|" + " --- |" * 5]
    for outcome in outcomes:
        card = outcome.read("distill", "model.json")
        metrics = outcome.read("evaluate", "metrics.json")
        if card is None or metrics is None:
            lines.append(f"| {outcome.network} | | | | not trained: {outcome.fault} |")
            continue
        student = metrics["student"]
        low, high = student["top1_ci"]
        lines.append(
            f"| {outcome.network} | `{card['model']}` | {card['parameters']:,} | {student['macs'] / 1e6:.1f} "
            f"| {student['top1']:.2f} [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join(lines)


def sentence(text: str, most: int = 400) -> str:
    """Format a reason as one line: join several lines, and shorten them to `most` characters."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _built(outcome: Outcome) -> dict[str, dict[str, Any]]:
    listing = outcome.read("build", "build.json") or {"targets": []}
    return {row["target"]: row for row in listing["targets"] if row["model"] == "student"}


def _why(outcome: Outcome, target: str, row: Mapping[str, Any]) -> str | None:
    reason = row.get("why_not") or outcome.left_out.get(target) or outcome.fault
    return sentence(reason) if reason else None


def _build_figures(outcome: Outcome, target: str) -> Mapping[str, Any]:
    targets = outcome.metrics.get("build", {}).get("targets", [])
    return next((entry for entry in targets if (entry["model"], entry["target"]) == ("student", target)), {})


def _file_error(outcome: Outcome, target: str, row: Mapping[str, Any]) -> str:
    if not row.get("built"):
        return ""
    if row["precision"] != "int8":
        parity = outcome.read("export", "parity.json")
        checks = parity["student"]["checks"] if parity else []
        return _number(max((check["max_relative_to_std"] for check in checks), default=None))
    from stages.runtimes import registry

    files = (outcome.read("quantize", "calibration.json") or {}).get("files", {})
    facts = files.get(registry.check_target(target).recipe, {})
    return _number(facts.get("logit_rms_relative_to_std"))


def _ratios(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the ratio of each student target that was timed in turns with fp32 of its runtime."""
    ratios = {}
    for comparison in comparisons:
        first, second = comparison["first"], comparison["second"]
        if first["model"] == second["model"] == "student" and first["target"].endswith(f"-{BASELINE}"):
            low, high = comparison["ratio_ci"]
            ratio = f"{comparison['ratio']:.3f} [{low:.3f}, {high:.3f}]"
            ratios[second["target"]] = f"{ratio} {comparison['verdict']}"
    return ratios


def _change(against: Mapping[str, Any] | None) -> str:
    if not against:
        return ""
    low, high = against["ci"]
    return f"{against['points']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _p50(row: Mapping[str, Any]) -> str:
    entries = row.get("latency") or []
    if not entries:
        return ""
    low, high = entries[0]["p50_ci_ms"]
    doubts = ", ".join(flag for flag in row.get("flags", []) if flag != "tail under-sampled")
    p50 = f"{entries[0]['p50_ms']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{p50} ({doubts})" if doubts else p50


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _affected(rows: Any) -> str:
    """List the networks and targets that share a reason: `resmlp, vit; ncnn-fp32, ncnn-fp16`."""
    rows = list(rows)
    networks = ", ".join(dict.fromkeys(row.network for row in rows))
    targets = ", ".join(dict.fromkeys(row.target for row in rows))
    return f"{networks}; {targets}"
