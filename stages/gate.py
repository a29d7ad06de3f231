"""gate: judge the profile's limits on what was measured, and choose the target to ship.

Writes `gates.json` and `junit.xml`. A missed gate does not fail the stage: the run continues with the bundle
and the report, and ends with exit code 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.json_files import write_json
from pipeline.junit import junit
from pipeline.stage import Context, Metrics
from stages.gating import judging
from stages.gating.picking import pick


def run(context: Context) -> Metrics:
    """Judge the gates on the artefacts of `evaluate` and `measure`, and choose the target to ship."""
    gates = context.settings.gates
    measured = judging.read(context.inputs["measure"], context.inputs["evaluate"])
    judgements = judging.judge(gates, measured)
    float_top1 = measured.scorecard["float_top1"]["student"]
    choice = pick(
        measured.scorecard["rows"],
        float_top1=float_top1,
        judgements=judgements,
        comparisons=measured.scorecard["comparisons"],
    )
    counts = Counter(judgement["status"] for judgement in judgements)
    document = {
        "schema_version": 1,
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "passed": counts["passed"],
        "missed": counts["missed"],
        "undecided": counts["undecided"],
        "judgements": judgements,
        "pick": choice,
    }
    write_json(context.output / "gates.json", document)
    (context.output / "junit.xml").write_text(junit(judgements, strict=False), encoding="utf-8")
    return {
        "gates": len(gates),
        "passed": counts["passed"],
        "gates_missed": _sentences(judgements, "missed"),
        "gates_undecided": _sentences(judgements, "undecided"),
        "pick": choice["target"],
    }


def _sentences(judgements: Sequence[Mapping[str, Any]], status: str) -> list[str]:
    return [judgement["said"] for judgement in judgements if judgement["status"] == status]
