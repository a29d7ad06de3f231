"""The parts of the report page, each made only from the JSON of an artefact."""

from __future__ import annotations

from typing import Any

from stages.reporting import charts
from stages.reporting.model_card import bytes_for_people

MOST_CLASSES = 30
"""With more classes the confusion table and the bars show only the worst."""

NONE = "–"


def setting(scorecard: dict[str, Any]) -> str:
    """Return the batch size and number of threads of the main latencies."""
    batch, threads = scorecard["settings"]["batch_sizes"][0], scorecard["settings"]["threads"][0]
    return f"batch {batch}, {threads} thread{'s' if threads != 1 else ''}"


def tiles(
    scorecard: dict[str, Any], pick: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any]
) -> list[dict[str, str]]:
    """Return the key figures of the recommended target, or of the first measured target."""
    rows = [row for row in scorecard["rows"] if row["model"] == "student" and row["top1"] is not None]
    recommended = pick["target"]
    row = next((each for each in rows if each["target"] == recommended), rows[0] if rows else None)
    baseline = next((each for each in scorecard["rows"] if each["model"] == "teacher"), None)
    if row is None:
        return []
    shrink = teacher["parameters"] / student["parameters"]
    figures = [
        {
            "label": f"top-1, {row['target']}",
            "value": f"{row['top1']:.2f} %",
            "detail": f"teacher {baseline['top1']:.2f} %" if baseline and baseline["top1"] else "",
        },
        {
            "label": "size",
            "value": bytes_for_people(row["size_bytes"]),
            "detail": f"{shrink:.1f}x fewer parameters",
        },
    ]
    if row["latency"]:
        speed = f"{row['speedup']:.1f}x faster than the teacher" if row["speedup"] else ""
        figures.insert(
            1, {"label": "p50 latency", "value": f"{row['latency'][0]['p50_ms']:.3f} ms", "detail": speed}
        )
    if scorecard["distillation"]:
        gain = scorecard["distillation"]
        low, high = gain["gain_ci"]
        figures.append(
            {
                "label": "gain by distillation",
                "value": f"{gain['gain_points']:+.2f} points",
                "detail": f"{low:+.2f} to {high:+.2f}",
            }
        )
    return figures


def scorecard_rows(scorecard: dict[str, Any], pick: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each measured target, then one for each further batch size and thread count."""
    best = pick["target"]
    rows = []
    for row in scorecard["rows"]:
        if row["top1"] is None:
            continue
        for index, entry in enumerate(row["latency"] or [{}]):
            first = index == 0
            low, high = row["top1_ci"]
            span = entry.get("p50_ci_ms")
            rows.append(
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
    return rows


def _against_float(row: dict[str, Any]) -> tuple[str, str]:
    """Return the points of top-1 over the same network in PyTorch, image by image, and their interval."""
    points, (low, high) = row["against_float"]["points"], row["against_float"]["ci"]
    return f"{points:+.2f}", f"{low:+.2f} to {high:+.2f}"


def gate_rows(gates: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each judged gate and target; `css` is the class of its status."""
    css = {"passed": "good", "missed": "bad", "undecided": "warn"}
    return [
        {
            "status": judgement["status"],
            "css": css[judgement["status"]],
            "target": judgement["target"],
            "message": judgement["said"],
        }
        for judgement in gates["judgements"]
    ]


def tradeoff_chart(scorecard: dict[str, Any]) -> str:
    """Draw accuracy against latency: the teacher's baseline and every measured target."""
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
    """Draw the validation accuracy of all networks, then training and validation loss of each."""
    kinds = {"teacher": "teacher", "student": "student", "student alone": "baseline"}
    drawings = []
    accuracy = [
        charts.Series(name, [(row["epoch"], row.get("val_top1")) for row in rows], kinds[name])
        for name, rows in histories.items()
        if rows
    ]
    if accuracy:
        drawn = charts.lines(
            accuracy, x_label="epoch", y_label="top-1, %", title="Top-1 on the validation split"
        )
        drawings.append({"title": "Top-1 on the validation split", "svg": drawn})
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
        drawings.append({"title": title, "svg": drawn})
    return [drawing for drawing in drawings if drawing["svg"]]


def per_class_chart(evaluation: dict[str, Any]) -> str:
    """Draw bars of teacher and student for each class; with many classes, for the student's worst."""
    chosen = _shown_classes(evaluation)
    names = [evaluation["student"]["per_class"][index]["class"] for index in chosen]
    groups = [
        (label, kind, [evaluation[role]["per_class"][index]["top1"] or 0.0 for index in chosen])
        for role, label, kind in (("teacher", "teacher", "teacher"), ("student", "student", "student"))
    ]
    return charts.bars(names, groups, title="Top-1 per class")


def per_class_note(evaluation: dict[str, Any]) -> str:
    """Return which classes the chart shows if it does not show all."""
    total = len(evaluation["student"]["per_class"])
    return f"; the student's {MOST_CLASSES} worst of {total} classes" if total > MOST_CLASSES else ""


def confusion_table(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the counts of the student's predictions, shaded by their share of the true class."""
    chosen = _shown_classes(evaluation)
    matrix = evaluation["student"]["confusion"]
    names = [evaluation["classes"][index] for index in chosen]
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
        rows.append({"name": evaluation["classes"][true], "cells": cells})
    return {"names": names, "rows": rows} if rows else None


def most_confused(evaluation: dict[str, Any], count: int = 5) -> list[str]:
    """Return the pairs of classes that the student confuses most often, in words."""
    matrix, classes = evaluation["student"]["confusion"], evaluation["classes"]
    pairs = [
        (matrix[true][predicted], classes[true], classes[predicted])
        for true in range(len(classes))
        for predicted in range(len(classes))
        if true != predicted and matrix[true][predicted]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [f"{true} predicted as {predicted} ({times} times)" for times, true, predicted in pairs[:count]]


def evaluated_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each network that was evaluated in PyTorch."""
    names = {"teacher": "teacher", "student": "student", "baseline": "student alone"}
    rows = []
    for role, name in names.items():
        metrics = evaluation[role]
        if not metrics:
            continue
        low, high = metrics["top1_ci"]
        agreement = metrics["agreement_with_teacher"]
        cells = [
            f"{metrics['top1']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{metrics['top5']:.2f}" if metrics["top5"] is not None else NONE,
            f"{metrics['ece']:.4f}",
            f"{agreement:.2f}" if agreement is not None else NONE,
            f"{metrics['parameters']:,}",
            f"{metrics['macs'] / 1e6:,.1f} M",
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def facts(scorecard: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the machine, the clock and the versions that the figures come from."""
    machine = scorecard["machine"]
    pairs = [(name.replace("_", " "), _plain(value)) for name, value in machine.items() if value]
    measured = [row for row in scorecard["rows"] if row["top1"] is not None]
    if measured:
        step = max(row["clock_step_ns"] for row in measured)
        pairs.append(("clock", f"{measured[0]['clock']}, smallest step {step} ns"))
    versions: dict[str, str] = {}
    for row in scorecard["rows"]:
        versions.update(row["versions"])
    pairs += [(name, version) for name, version in sorted(versions.items())]
    for row in measured:
        provider = {key: value for key, value in row["facts"].items() if isinstance(value, str | int | float)}
        listed = ", ".join(f"{key} {value}" for key, value in sorted(provider.items()))
        pairs.append((f"{row['model']}, {row['target']}", f"{listed}; sha256 {row['sha256'][:16]}…"))
    return pairs


def _shown_classes(evaluation: dict[str, Any]) -> list[int]:
    per_class = evaluation["student"]["per_class"]
    if len(per_class) <= MOST_CLASSES:
        return list(range(len(per_class)))
    worst = sorted(range(len(per_class)), key=lambda index: per_class[index]["top1"] or 0.0)
    return sorted(worst[:MOST_CLASSES])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else NONE
