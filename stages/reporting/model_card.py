"""The model card: the student, its measured figures, and its limits."""

from __future__ import annotations

from typing import Any


def model_card(
    name: str,
    scorecard: dict[str, Any],
    pick: dict[str, Any],
    student: dict[str, Any],
    teacher: dict[str, Any],
) -> str:
    """Write the model card as Markdown, from measured values only.

    Args:
        name: The profile's name.
        scorecard: The content of measure's `scorecard.json`.
        pick: The target to ship, of the gate stage.
        student: The student's `model.json`.
        teacher: The teacher's `model.json`.
    """
    preprocessing = student["preprocessing"]
    channels = "grey" if preprocessing["channels"] == 1 else "RGB"
    size = preprocessing["image_size"]
    machine = scorecard["machine"]
    lines = [
        f"# {name}: model card",
        "",
        f"An image classifier for {len(student['classes'])} classes: `{student['model']}` "
        f"{_borrowed(student)}({student['parameters']:,} parameters), distilled from `{teacher['model']}` "
        f"({teacher['parameters']:,} parameters).",
        "",
        "## Measured",
        "",
        f"Measured on all {scorecard['test_images']:,} images of the test set with the files that ship; "
        f"latency at {_setting(scorecard)}, on {machine['cpu']} ({machine['cores']} cores).",
        "",
        "| model | target | top-1 % (95 % interval) | agreement with teacher % | p50 ms | p99 ms "
        "| against the teacher | size | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(row) for row in scorecard["rows"] if row["top1"] is not None]
    lines.append("")
    not_measured = [row for row in scorecard["rows"] if row["top1"] is None]
    if not_measured:
        lines += ["Not measured:", ""]
        lines += [f"- `{row['target']}`: {row['why_not']}" for row in not_measured]
        lines.append("")
    if pick["target"]:
        lines += [f"**Ship `{pick['target']}`**: {pick['reason']}.", ""]
    for rejected in pick.get("rejected", []):
        lines.append(f"- `{rejected['target']}` {rejected['why']}.")
    if pick.get("rejected"):
        lines.append("")
    if scorecard["distillation"]:
        lines += ["## Gain by distillation", "", distillation_sentence(scorecard["distillation"]), ""]
    lines += [
        "## Input and output",
        "",
        f"- Input: {channels} images, {size}x{size}, uint8, height x width x channel. "
        f"Resize the shorter side to {size} ({preprocessing['resize']}, antialiased), then crop the centre.",
        f"- Normalization (mean {_numbers(preprocessing['mean'])}, standard deviation "
        f"{_numbers(preprocessing['std'])} on the 0..1 scale) is "
        + ("part of the files." if student.get("input") == "uint8_nhwc" else "done by `predict.py`."),
        "- Output: one logit per class, in the order of `labels.txt`.",
        "",
        "## Limits",
        "",
        "- The figures are valid for images like those of the test set; no other images were tested.",
        "- Latency is the time of one call at a time on the machine above; measure again on the device.",
        "- Probabilities are the softmax of the logits; they are not calibrated.",
        "",
    ]
    return "\n".join(lines)


def _borrowed(student: dict[str, Any]) -> str:
    """Return the parts that the student takes from its teacher, for a sentence that counts parameters."""
    return "with a projector and its teacher's classifier " if "borrowed" in student else ""


def distillation_sentence(gain: dict[str, Any]) -> str:
    """Return the gain of distillation over the same student trained alone, in one sentence."""
    low, high = gain["gain_ci"]
    verdicts = {
        "better": "distillation helped",
        "worse": "distillation did harm",
        "cannot tell": "this test set is too small to decide whether distillation helped",
    }
    return (
        f"Distilled minus trained alone: {gain['gain_points']:+.2f} points top-1 "
        f"(95 % interval {low:+.2f} to {high:+.2f}, McNemar p = {gain['p_value']:.3g}): "
        f"{verdicts.get(gain['verdict'], gain['verdict'])}."
    )


def bytes_for_people(size: float | None) -> str:
    """Return a size in decimal units, such as `1.5 MB`; an en dash if it is not known."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _row(row: dict[str, Any]) -> str:
    entry = row["latency"][0] if row["latency"] else {}
    low, high = row["top1_ci"]
    cells = [
        row["model"],
        f"`{row['target']}`",
        f"{row['top1']:.2f} ({low:.2f} to {high:.2f})",
        f"{row['agreement']:.2f}",
        _ms(entry.get("p50_ms")),
        _ms(entry.get("p99_ms")),
        f"{row['speedup']:.2f}x" if row["speedup"] else "–",
        bytes_for_people(row["size_bytes"]),
        bytes_for_people(row["peak_memory_bytes"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "–"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _setting(scorecard: dict[str, Any]) -> str:
    batch = scorecard["settings"]["batch_sizes"][0]
    threads = scorecard["settings"]["threads"][0]
    return f"batch {batch}, {threads} thread{'s' if threads != 1 else ''}"
