"""A comparison as text and as a JSON document.

Only the documented content of `comparison.json` is read (docs/reference/artefacts.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console.tables import amount, figure, size, table

if TYPE_CHECKING:
    from pipeline.comparing.comparison import FinishedRun


def comparison_text(comparison: Mapping[str, Any], page: Path) -> str:
    """Return the table, notes on it, the answer in one line, and the path of the page."""
    header = (
        "method",
        "seeds",
        "top-1 %",
        "gain [95 %]",
        "p (Holm)",
        "last epoch %",
        "gain",
        "agreement %",
        "s/epoch",
        "time",
        "parameters",
        "in training",
        "memory",
    )
    rows = [_row(method) for method in comparison["methods"]]
    lines = [table(header, rows, "lrrrrrrrrrrrr"), "", *_notes(comparison)]
    lines += ["", comparison["answer"]["text"], "", f"page  {page}"]
    return "\n".join(lines)


def comparison_document(
    comparison: Mapping[str, Any], finished: Sequence[FinishedRun], folder: Path, key: str
) -> dict[str, Any]:
    """Return the fields of the JSON document: the comparison, and each run with its folder and status."""
    results = {(each.run.label, each.run.seed): each.result for each in finished}
    fields = {name: value for name, value in comparison.items() if name != "schema_version"}
    fields["runs"] = [
        {
            **run,
            "status": results[run["label"], run["seed"]].status,
            "path": _path(results[run["label"], run["seed"]].path),
            "seconds": results[run["label"], run["seed"]].seconds,
        }
        for run in comparison["runs"]
    ]
    return {**fields, "key": key, "path": str(folder)}


def runs_so_far(finished: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return the finished runs of a comparison that has not ended."""
    return [
        {
            "label": each.run.label,
            "seed": each.run.seed,
            "key": each.result.key,
            "digest": each.result.digest,
            "failed": each.why_failed,
            "status": each.result.status,
            "path": _path(each.result.path),
            "seconds": each.result.seconds,
        }
        for each in finished
    ]


def _row(method: Mapping[str, Any]) -> list[str]:
    best, last = method["best"], method["last"]
    memory, times = method["peak_memory_bytes"], method["times_reference"]
    gain = ""
    if best["gain_points"] is not None:
        low, high = best["gain_ci"]
        gain = f"{best['gain_points']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return [
        method["label"],
        str(len(method["seeds"])) + (f" ({method['failed']} failed)" if method["failed"] else ""),
        _spread(best),
        gain or "-",
        "-" if best["p_holm"] is None else f"{best['p_holm']:.2g}",
        _spread(last),
        "-" if last["gain_points"] is None else f"{last['gain_points']:+.2f}",
        figure(method["agreement_with_teacher"]),
        figure(method["seconds_per_epoch"]),
        "-" if times is None else f"{times:.2f}x",
        "-" if method["parameters"] is None else amount(method["parameters"]),
        "-" if method["method_parameters"] is None else f"+{amount(method['method_parameters'])}",
        "not measured" if memory is None else size(memory),
    ]


def _spread(figures: Mapping[str, Any]) -> str:
    spread = figures["top1_sd"]
    return figure(figures["top1"]) + (f" ({spread:.2f})" if spread is not None else "")


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    """Return what the table was measured on, the failed runs, and the methods that do not fit."""
    teacher = comparison["teacher"]
    low, high = teacher["top1_ci"]
    reference = comparison["reference"]
    lines = [
        f"top-1 of the epoch with the best validation accuracy, mean (standard deviation) over the seeds; "
        f"{comparison['images']:,} {comparison['split']} images",
        f"gain in points over {'the ' if reference == 'student alone' else ''}{reference} with the same seed",
        f"teacher {teacher['top1']:.2f} % [{low:.2f}, {high:.2f}]",
    ]
    lines += [
        f"failed: {run['label']}, seed {run['seed']}: {run['failed']}"
        for run in comparison["runs"]
        if run["failed"]
    ]
    lines += [f"does not fit: {method['label']}: {method['why']}" for method in comparison["unfit"]]
    return lines


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
