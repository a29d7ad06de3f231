"""The result of `kdpipe debug` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.console.tables import table

_HEADER = ("", "op", "layer", "max error", "relative", "inputs'", "spread", "not finite")


def debug_text(document: Mapping[str, Any]) -> str:
    """Return the text of a debugging document: a table for each conversion that diverges, and a summary."""
    parts = [_step(step) for step in document["steps"]]
    diverging = [step for step in document["steps"] if not step["healthy"]]
    if diverging:
        parts.append(f"{len(diverging)} of {len(document['steps'])} conversions diverge")
    elif any(step["status"] == "skipped" for step in document["steps"]):
        parts.append("healthy: every conversion that could be compared")
    else:
        parts.append("healthy: no layer diverges for good")
    return "\n\n".join(parts)


def _step(step: Mapping[str, Any]) -> str:
    if step["status"] == "skipped" or "layers" not in step:
        return "\n".join([f"{step['step']}: {step['status']}", f"  {step['why']}", *_shipped(step)])
    lines = [
        f"{step['step']}: {step['status']}",
        f"  {step['compared']} layers compared, {step['without_counterpart']} without a counterpart, "
        f"{step['healed']} differ and heal; tolerance {step['tolerance']:g}",
        *_shipped(step),
    ]
    if step["why"]:
        lines.append(f"  {step['why']}")
    first = step["first"]
    if first is None:
        worst = max((layer["relative"] for layer in step["outputs"]), default=None)
        if worst is not None:
            lines.append(f"  outputs differ by {worst:.2g} of their spread at most")
        return "\n".join(lines)
    lines.append(f"  first divergence: {first['node']} ({first['op']}){_reason(first)}")
    lines += [
        f"  weight {weight['name']} differs by up to {weight['max_abs']:.4g}" for weight in step["weights"]
    ]
    rows = [_row(layer, layer["value"] == first["value"]) for layer in step["layers"]]
    lines += [f"  {line}" for line in table(_HEADER, rows, "lllrrrrr").splitlines()]
    lines.append(f"  minimal model: {step['output']}")
    return "\n".join(lines)


def _shipped(step: Mapping[str, Any]) -> list[str]:
    if "shipped_relative" not in step:
        return []
    relative = step["shipped_relative"]
    distance = "not finite" if relative is None else f"{relative:.2g} of their spread away"
    return [f"  as it ships: logits {distance}, {step['shipped_top1_agreement']:.1f} % of the classes alike"]


def _reason(first: Mapping[str, Any]) -> str:
    if not first["not_finite"]:
        return ""
    if first["largest"] > HALF_MAX:
        return (
            f": {first['not_finite']} values overflow; the reference reaches {first['largest']:.4g}, "
            f"fp16 ends at {HALF_MAX:g}"
        )
    return f": {first['not_finite']} values are NaN or infinite"


HALF_MAX = 65504.0
"""The largest number of fp16."""


def _row(layer: Mapping[str, Any], is_first: bool) -> list[str]:
    return [
        ">" if is_first else "*" if layer["diverges"] else "",
        layer["op"],
        layer["node"] if layer["value"].startswith(layer["node"]) else f"{layer['node']} ({layer['value']})",
        _number(layer["max_abs"]),
        _number(layer["relative"]),
        "" if layer["from_inputs"] is None else _number(layer["from_inputs"]),
        _number(layer["spread"]),
        str(layer["not_finite"] or ""),
    ]


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3g}"
