"""Write the scorecard that docs/reference/artefacts.md documents, with a target that was not built."""

from __future__ import annotations

import json
from typing import Any

from pipeline.stage import Context, Metrics
from tests.pipeline.smallhouse.evaluate import DISTILLATION


def row(model: str, target: str, p50_ms: float | None, **more: Any) -> dict[str, Any]:
    built = p50_ms is not None
    latency = {
        "batch": 1,
        "threads": 1,
        "p50_ms": p50_ms,
        "p90_ms": 2.5,
        "p99_ms": 3.25,
        "p50_ci_ms": [p50_ms or 0, (p50_ms or 0) + 0.004],
        "n": 500,
    }
    return {
        "model": model,
        "target": target,
        "runtime": target.rpartition("-")[0],
        "precision": target.rpartition("-")[2],
        "built": built,
        "why_not": None,
        "hint": None,
        "top1": 97.41 if built else None,
        "top1_ci": [95.7, 98.5] if built else None,
        "agreement": 98.15 if built else None,
        "latency": [latency] if built else [],
        "throughput_ips": 900.0,
        "speedup": 6.5 if built else None,
        "size_bytes": 2_340_000 if built else None,
        "peak_memory_bytes": 91_000_000 if built else None,
        "sha256": "0" * 64,
        "flags": [],
        **more,
    }


def pair(first: str, second: str, ratio: float, verdict: str) -> dict[str, Any]:
    return {
        "first": {"model": "teacher", "target": first},
        "second": {"model": "student", "target": second},
        "ratio": ratio,
        "ratio_ci": [ratio - 0.02, ratio + 0.02],
        "verdict": verdict,
    }


def run(context: Context) -> Metrics:
    scorecard = {
        "schema_version": 1,
        "machine": {},
        "settings": {},
        "rows": [
            row("teacher", "onnxruntime-fp32", 12.345, speedup=1.0),
            row("student", "onnxruntime-int8", 1.899, flags=["drift"]),
            row(
                "student",
                "tensorrt-fp16",
                None,
                why_not="there is no GPU",
                hint="pip install 'kdpipe[tensorrt]'",
            ),
        ],
        "comparisons": [
            pair("onnxruntime-fp32", "onnxruntime-int8", 0.154, "faster"),
            pair("onnxruntime-fp32", "openvino-fp32", 1.01, "cannot tell"),
        ],
        "distillation": DISTILLATION,
    }
    (context.output / "scorecard.json").write_text(json.dumps(scorecard))
    return {"fastest": "onnxruntime-int8"}
