"""A comparison in words and as a document, read only from `comparison.json` (docs/reference/artefacts.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console.tables import amount, figure, size, table

if TYPE_CHECKING:
    from pipeline.comparing.comparison import Done


def in_words(found: Mapping[str, Any], page: Path) -> str:
    """The table, what is to be known of it, and the answer in one line."""
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
    rows = [_row(method) for method in found["methods"]]
    lines = [table(header, rows, "lrrrrrrrrrrrr"), "", *_notes(found)]
    lines += ["", found["answer"]["text"], "", f"page  {page}"]
    return "\n".join(lines)


def as_document(found: Mapping[str, Any], done: Sequence[Done], folder: Path, key: str) -> dict[str, Any]:
    """The fields of the JSON document: the comparison, each run with its folder and what became of it."""
    become = {(one.run.label, one.run.seed): one.result for one in done}
    fields = {name: value for name, value in found.items() if name != "schema_version"}
    fields["runs"] = [
        {
            **run,
            "status": become[run["label"], run["seed"]].status,
            "path": _path(become[run["label"], run["seed"]].path),
            "seconds": become[run["label"], run["seed"]].seconds,
        }
        for run in found["runs"]
    ]
    return {**fields, "key": key, "path": str(folder)}


def runs_so_far(done: Sequence[Done]) -> list[dict[str, Any]]:
    """The runs of a comparison that has not come to its end."""
    return [
        {
            "label": one.run.label,
            "seed": one.run.seed,
            "key": one.result.key,
            "digest": one.result.digest,
            "failed": one.failed,
            "status": one.result.status,
            "path": _path(one.result.path),
            "seconds": one.result.seconds,
        }
        for one in done
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


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What the table rests on, what failed and what did not fit."""
    teacher = found["teacher"]
    low, high = teacher["top1_ci"]
    lines = [
        f"top-1 of the epoch with the best validation accuracy, mean (standard deviation) over the seeds; "
        f"{found['images']:,} {found['split']} images",
        f"gain in points over {'the ' if found['reference'] == 'student alone' else ''}{found['reference']} "
        "with the same seed",
        f"teacher {teacher['top1']:.2f} % [{low:.2f}, {high:.2f}]",
    ]
    for run in found["runs"]:
        if run["failed"]:
            lines.append(f"failed: {run['label']}, seed {run['seed']}: {run['failed']}")
    lines += [f"does not fit: {one['label']}: {one['why']}" for one in found["unfit"]]
    return lines


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
