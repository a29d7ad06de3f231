"""gate: the profile's limits judged on what was measured, and the target to ship under them.

Leaves `gates.json` and `junit.xml`. A missed gate fails no stage: the run goes on to the bundle and the
report, and ends with exit code 3.
"""

from __future__ import annotations

from collections import Counter

from pipeline.json_files import write_json
from pipeline.junit import junit
from pipeline.stage import Context, Metrics
from stages.gating import judging
from stages.gating.picking import pick


def run(context: Context) -> Metrics:
    """Reads `evaluate` and `measure`."""
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
    counts = Counter(one["status"] for one in judgements)
    found = {
        "schema_version": 1,
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "passed": counts["passed"],
        "missed": counts["missed"],
        "undecided": counts["undecided"],
        "judgements": judgements,
        "pick": choice,
    }
    write_json(context.output / "gates.json", found)
    (context.output / "junit.xml").write_text(junit(judgements, strict=False), encoding="utf-8")
    return {
        "gates": len(gates),
        "passed": counts["passed"],
        "gates_missed": [one["said"] for one in judgements if one["status"] == "missed"],
        "gates_undecided": [one["said"] for one in judgements if one["status"] == "undecided"],
        "pick": choice["target"],
    }
