"""Judges the sum, here and nowhere else."""

from __future__ import annotations

from pipeline.stage import Context, Metrics


def run(context: Context) -> Metrics:
    total = float((context.inputs["refine"] / "sum.txt").read_text(encoding="utf-8").split()[0])
    settings = context.settings.judge
    verdict = "high" if total > 100 * settings.limit else "low"
    (context.output / "verdict.txt").write_text(verdict, encoding="utf-8")
    cannot = [{"target": name, "why": "no such machine", "hint": "buy one"} for name in settings.cannot]
    return {"verdict": verdict, "machine_cannot": cannot}
