"""The parts of the report page, each made from an artefact's JSON alone."""

from __future__ import annotations

from typing import Any

from stages.reporting import charts
from stages.reporting.model_card import bytes_for_people

MOST_CLASSES = 30
"""With more classes the confusion table and the bars show the worst ones only."""

NONE = "–"


def setting(scorecard: dict[str, Any]) -> str:
    """The batch size and thread count at which headline latencies hold."""
    batch, threads = scorecard["settings"]["batch_sizes"][0], scorecard["settings"]["threads"][0]
    return f"batch {batch}, {threads} thread{'s' if threads != 1 else ''}"


def tiles(
    scorecard: dict[str, Any], pick: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any]
) -> list[dict[str, str]]:
    """The four figures one wants first: of the recommended target, or of the first measured one."""
    rows = [row for row in scorecard["rows"] if row["model"] == "student" and row["top1"] is not None]
    row = next((one for one in rows if one["target"] == pick["target"]), rows[0] if rows else None)
    of_teacher = next((one for one in scorecard["rows"] if one["model"] == "teacher"), None)
    if row is None:
        return []
    shrink = teacher["parameters"] / student["parameters"]
    found = [
        {
            "label": f"top-1, {row['target']}",
            "value": f"{row['top1']:.2f} %",
            "detail": f"teacher {of_teacher['top1']:.2f} %" if of_teacher and of_teacher["top1"] else "",
        },
        {
            "label": "size",
            "value": bytes_for_people(row["size_bytes"]),
            "detail": f"{shrink:.1f}x fewer parameters",
        },
    ]
    if row["latency"]:
        speed = f"{row['speedup']:.1f}x faster than the teacher" if row["speedup"] else ""
        found.insert(
            1, {"label": "p50 latency", "value": f"{row['latency'][0]['p50_ms']:.3f} ms", "detail": speed}
        )
    if scorecard["distillation"]:
        gain = scorecard["distillation"]
        low, high = gain["gain_ci"]
        found.append(
            {
                "label": "gain by distillation",
                "value": f"{gain['gain_points']:+.2f} points",
                "detail": f"{low:+.2f} to {high:+.2f}",
            }
        )
    return found


def scorecard_rows(scorecard: dict[str, Any], pick: dict[str, Any]) -> list[dict[str, Any]]:
    """Every measured row, a cell a column of the page's table; further batches and threads below."""
    best = pick["target"]
    found = []
    for row in scorecard["rows"]:
        if row["top1"] is None:
            continue
        for index, entry in enumerate(row["latency"] or [{}]):
            first = index == 0
            low, high = row["top1_ci"]
            span = entry.get("p50_ci_ms")
            found.append(
                {
                    "model": row["model"] if first else "",
                    "target": row["target"]
                    if first
                    else f"batch {entry['batch']}, {entry['threads']} thread{'s' * (entry['threads'] != 1)}",
                    "best": first and row["model"] == "student" and row["target"] == best,
                    "flags": entry.get("flags", []),
                    "cells": [
                        f"{row['top1']:.2f}" if first else "",
                        f"{low:.2f} to {high:.2f}" if first else "",
                        *(_against_float(row) if first else ("", "")),
                        f"{row['agreement']:.2f}" if first else "",
                        _ms(entry.get("p50_ms")),
                        f"{span[0]:.3f} to {span[1]:.3f}" if span else NONE,
                        _ms(entry.get("p90_ms")),
                        _ms(entry.get("p99_ms")),
                        (f"{row['speedup']:.2f}x" if row["speedup"] else NONE) if first else "",
                        f"{entry['throughput_ips']:,.0f}" if entry else NONE,
                        bytes_for_people(row["size_bytes"]) if first else "",
                        bytes_for_people(row["peak_memory_bytes"]) if first else "",
                    ],
                }
            )
    return found


def _against_float(row: dict[str, Any]) -> tuple[str, str]:
    """Points of top-1 over the same network in PyTorch, image by image, and their interval."""
    told = row["against_float"]
    return f"{told['points']:+.2f}", f"{told['ci'][0]:+.2f} to {told['ci'][1]:+.2f}"


def gate_rows(gates: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each judged gate and target; `css` is the class of its verdict."""
    css = {"passed": "good", "missed": "bad", "undecided": "warn"}
    return [
        {"status": one["status"], "css": css[one["status"]], "target": one["target"], "said": one["said"]}
        for one in gates["judgements"]
    ]


def tradeoff_chart(scorecard: dict[str, Any]) -> str:
    """Accuracy against latency: the teacher's baseline and every measured target."""
    marks = []
    for row in scorecard["rows"]:
        if row["top1"] is None or not row["latency"]:
            continue
        p50 = row["latency"][0]["p50_ms"]
        low, high = row["top1_ci"]
        name = row["target"] if row["model"] == "student" else f"teacher, {row['target']}"
        marks.append(
            charts.Mark(
                name, p50, row["top1"], row["model"], (low, high), f"{row['top1']:.2f} %, {p50:.3f} ms"
            )
        )
    return charts.scatter(
        marks, x_label="p50 latency, ms (logarithmic)", y_label="top-1, %", title="Accuracy against latency"
    )


def curves(histories: dict[str, list[dict[str, float]]]) -> list[dict[str, str]]:
    """Validation accuracy of all networks, then training and validation loss of each."""
    kinds = {"teacher": "teacher", "student": "student", "student alone": "baseline"}
    found = []
    accuracy = [
        charts.Series(name, [(row["epoch"], row.get("val_top1")) for row in rows], kinds[name])
        for name, rows in histories.items()
        if rows
    ]
    if accuracy:
        drawn = charts.lines(
            accuracy, x_label="epoch", y_label="top-1, %", title="Top-1 on the validation split"
        )
        found.append({"title": "Top-1 on the validation split", "svg": drawn})
    for name, rows in histories.items():
        if not rows:
            continue
        losses = [
            charts.Series(
                "training", [(row["epoch"], row.get("train_loss")) for row in rows], kinds[name], True
            ),
            charts.Series("validation", [(row["epoch"], row.get("val_loss")) for row in rows], kinds[name]),
        ]
        title = f"Loss, {name}"
        drawn = charts.lines(losses, x_label="epoch", y_label="loss", title=title)
        found.append({"title": title, "svg": drawn})
    return [chart for chart in found if chart["svg"]]


def per_class_chart(judged: dict[str, Any]) -> str:
    """Bars of teacher and student a class; with many classes, the student's worst."""
    chosen = _shown_classes(judged)
    names = [judged["student"]["per_class"][index]["class"] for index in chosen]
    groups = [
        (label, kind, [judged[role]["per_class"][index]["top1"] or 0.0 for index in chosen])
        for role, label, kind in (("teacher", "teacher", "teacher"), ("student", "student", "student"))
    ]
    return charts.bars(names, groups, title="Top-1 a class")


def per_class_note(judged: dict[str, Any]) -> str:
    total = len(judged["student"]["per_class"])
    return f"; the student's {MOST_CLASSES} worst of {total} classes" if total > MOST_CLASSES else ""


def confusion_table(judged: dict[str, Any]) -> dict[str, Any] | None:
    """Counts of the student's predictions, shaded by their share of the true class."""
    chosen = _shown_classes(judged)
    matrix = judged["student"]["confusion"]
    names = [judged["classes"][index] for index in chosen]
    rows = []
    for true in chosen:
        total = max(1, sum(matrix[true]))
        cells = [
            {
                "count": matrix[true][predicted],
                "heat": f"{0.75 * matrix[true][predicted] / total:.3f}",
                "diagonal": true == predicted,
            }
            for predicted in chosen
        ]
        rows.append({"name": judged["classes"][true], "cells": cells})
    return {"names": names, "rows": rows} if rows else None


def most_confused(judged: dict[str, Any], count: int = 5) -> list[str]:
    """The pairs of classes that the student mixes up most often, in words."""
    matrix, classes = judged["student"]["confusion"], judged["classes"]
    pairs = [
        (matrix[true][predicted], classes[true], classes[predicted])
        for true in range(len(classes))
        for predicted in range(len(classes))
        if true != predicted and matrix[true][predicted]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [f"{true} taken for {predicted} ({times} times)" for times, true, predicted in pairs[:count]]


def evaluated_rows(judged: dict[str, Any]) -> list[dict[str, Any]]:
    names = {"teacher": "teacher", "student": "student", "baseline": "student alone"}
    found = []
    for role, name in names.items():
        one = judged[role]
        if not one:
            continue
        low, high = one["top1_ci"]
        agreement = one["agreement_with_teacher"]
        cells = [
            f"{one['top1']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{one['top5']:.2f}" if one["top5"] is not None else NONE,
            f"{one['ece']:.4f}",
            f"{agreement:.2f}" if agreement is not None else NONE,
            f"{one['parameters']:,}",
            f"{one['macs'] / 1e6:,.1f} M",
        ]
        found.append({"name": name, "cells": cells})
    return found


def facts(scorecard: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine, the clock and the versions behind the figures."""
    machine = scorecard["machine"]
    found = [(name.replace("_", " "), _plain(value)) for name, value in machine.items() if value]
    measured = [row for row in scorecard["rows"] if row["top1"] is not None]
    if measured:
        step = max(row["clock_step_ns"] for row in measured)
        found.append(("clock", f"{measured[0]['clock']}, smallest step {step} ns"))
    versions: dict[str, str] = {}
    for row in scorecard["rows"]:
        versions.update(row["versions"])
    found += [(name, version) for name, version in sorted(versions.items())]
    for row in measured:
        provider = {key: value for key, value in row["facts"].items() if isinstance(value, str | int | float)}
        said = ", ".join(f"{key} {value}" for key, value in sorted(provider.items()))
        found.append((f"{row['model']}, {row['target']}", f"{said}; sha256 {row['sha256'][:16]}…"))
    return found


def _shown_classes(judged: dict[str, Any]) -> list[int]:
    per_class = judged["student"]["per_class"]
    if len(per_class) <= MOST_CLASSES:
        return list(range(len(per_class)))
    worst = sorted(range(len(per_class)), key=lambda index: per_class[index]["top1"] or 0.0)
    return sorted(worst[:MOST_CLASSES])


def _plain(value: Any) -> str:
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else NONE
