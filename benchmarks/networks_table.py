"""The table of `bench_networks.py`: what became of every target of every network, from artefacts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = "fp32"
"""The precision that the others of its runtime are timed against, in turns."""

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
- state: measured; built (and proven if it runs here, but not timed or judged); no: not built. The number is
  that of the reason below.
- file's error: of the ONNX file that the target is built from. Float: largest logit difference from PyTorch
  over the logits' standard deviation; INT8: root mean square of the differences from the float file over the
  spread of the logits, on training images that calibration has not seen.
- target's error: root mean square of the logit differences of the built target from that file over their
  spread, on real test images.
- agreement, top-1 change: with and against the student in PyTorch (float32), over all test images; the
  interval is paired, image by image.
- p50: one image, one thread. Time over fp32's: both taken in turns; below 1 is faster than fp32 of the same
  runtime."""


@dataclass(frozen=True)
class Outcome:
    """One network's run.

    folders, metrics: of the stages that got done, by name. fault: the sentence that ended the run, if one
    did. left_out: targets that had to be left out for the run to go on, and why.
    """

    network: str
    folders: Mapping[str, Path]
    metrics: Mapping[str, Mapping[str, Any]]
    fault: str | None
    left_out: Mapping[str, str]

    def read(self, stage: str, name: str) -> dict[str, Any] | None:
        """A JSON file of a stage's artefact; None if the run did not come so far."""
        folder = self.folders.get(stage)
        if folder is None:
            return None
        found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True)
class Row:
    """One target of one network. cells: from `state` on, without the reason's number. why: the reason, if
    there is one. silent: there are neither figures nor a reason.
    """

    network: str
    target: str
    cells: tuple[str, ...]
    why: str | None
    silent: bool


def rows_of(outcome: Outcome, targets: Sequence[str]) -> list[Row]:
    """A row for each target, whatever became of it."""
    scorecard = outcome.read("measure", "scorecard.json") or {"rows": [], "comparisons": []}
    measured = {row["target"]: row for row in scorecard["rows"] if row["model"] == "student"}
    built = _built(outcome)
    ratios = _ratios(scorecard["comparisons"])
    found = []
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
        found.append(Row(outcome.network, target, cells, why, silent=not figures and not why))
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table, what its columns mean, and every reason once with the targets that it stands for."""
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
        lines.append(f"{number}. {_whose(row for row in rows if row.why == reason)}: {reason}")
    return "\n".join(lines)


def students(outcomes: Sequence[Outcome]) -> str:
    """The networks themselves: their size and what they learnt, by PyTorch in float32."""
    lines = ["| network | architecture | parameters | million MACs | top-1 % [95 %] |", "|" + " --- |" * 5]
    for outcome in outcomes:
        card = outcome.read("distill", "model.json")
        judged = outcome.read("evaluate", "metrics.json")
        if card is None or judged is None:
            lines.append(f"| {outcome.network} | | | | not trained: {outcome.fault} |")
            continue
        student = judged["student"]
        low, high = student["top1_ci"]
        lines.append(
            f"| {outcome.network} | `{card['model']}` | {card['parameters']:,} | {student['macs'] / 1e6:.1f} "
            f"| {student['top1']:.2f} [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join(lines)


def sentence(text: str, most: int = 400) -> str:
    """A reason in one line: what a builder said over several is joined, and cut where it is endless."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _built(outcome: Outcome) -> dict[str, dict[str, Any]]:
    listing = outcome.read("build", "build.json") or {"targets": []}
    return {row["target"]: row for row in listing["targets"] if row["model"] == "student"}


def _why(outcome: Outcome, target: str, row: Mapping[str, Any]) -> str | None:
    said = row.get("why_not") or outcome.left_out.get(target) or outcome.fault
    return sentence(said) if said else None


def _build_figures(outcome: Outcome, target: str) -> Mapping[str, Any]:
    told = outcome.metrics.get("build", {}).get("targets", [])
    return next((one for one in told if one["model"] == "student" and one["target"] == target), {})


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
    """Of the student's targets that were timed in turns with fp32 of their runtime."""
    found = {}
    for one in comparisons:
        first, second = one["first"], one["second"]
        if first["model"] == second["model"] == "student" and first["target"].endswith(f"-{BASELINE}"):
            low, high = one["ratio_ci"]
            found[second["target"]] = f"{one['ratio']:.3f} [{low:.3f}, {high:.3f}] {one['verdict']}"
    return found


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
    told = f"{entries[0]['p50_ms']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{told} ({doubts})" if doubts else told


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _whose(rows: Any) -> str:
    """`resmlp, vit: ncnn-fp32, ncnn-fp16`: the networks and the targets that share a reason."""
    rows = list(rows)
    networks = ", ".join(dict.fromkeys(row.network for row in rows))
    targets = ", ".join(dict.fromkeys(row.target for row in rows))
    return f"{networks}; {targets}"
