"""report: write a self-contained HTML page that opens offline, `summary.json` and the model card."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics, StageRecord
from stages.reporting import charts, int8, parts, payoff, speed
from stages.reporting.model_card import distillation_sentence, model_card

TEMPLATES = Path(charts.__file__).parent


def run(context: Context) -> Metrics:
    """Write the page, the summary and the model card from the artefacts of all other stages."""
    inputs = context.inputs
    scorecard = _json(inputs["measure"] / "scorecard.json")
    gates = _json(inputs["gate"] / "gates.json")
    pick = gates["pick"]
    evaluation = _json(inputs["evaluate"] / "metrics.json")
    student, teacher = (_json(inputs["export"] / f"{role}.json") for role in ("student", "teacher"))
    calibration = _json(inputs["quantize"] / "calibration.json")
    histories = {
        "teacher": _history(inputs["train"] / "history.csv"),
        "student": _history(inputs["distill"] / "history.csv"),
        "student alone": _history(inputs["distill"] / "baseline" / "history.csv"),
    }
    precisions = payoff.rows(scorecard, _json(inputs["build"] / "build.json"), inputs["measure"])
    title = context.settings.report.title or context.settings.name

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        student=student,
        teacher=teacher,
        scorecard=scorecard,
        machine=scorecard["machine"],
        setting=parts.setting(scorecard),
        tiles=parts.tiles(scorecard, pick, student, teacher),
        pick=pick,
        distillation=distillation_sentence(scorecard["distillation"]) if scorecard["distillation"] else "",
        rows=parts.scorecard_rows(scorecard, pick),
        gates=parts.gate_rows(gates),
        missing=[row for row in scorecard["rows"] if row["top1"] is None],
        charts={
            "tradeoff": parts.tradeoff_chart(scorecard),
            "per_class": parts.per_class_chart(evaluation),
        },
        per_class_note=parts.per_class_note(evaluation),
        curves=parts.curves(histories),
        confusion=parts.confusion_table(evaluation),
        confused=parts.most_confused(evaluation),
        evaluated=parts.evaluated_rows(evaluation),
        stages=_stages(context.history),
        comparisons=speed.comparison_rows(scorecard),
        payoff=payoff.table(precisions),
        load=speed.load_rows(scorecard),
        conditions=speed.condition_rows(scorecard),
        why_no_energy=speed.why_no_energy(scorecard),
        int8=int8.int8_rows(calibration),
        calibration_doubts=int8.calibration_doubts(calibration),
        facts=parts.facts(scorecard),
    )
    (context.output / "report.html").write_text(page, encoding="utf-8")
    summary = _summary(context, scorecard, pick, evaluation, student, teacher)
    summary["gates"] = gates["judgements"]
    summary["precisions"] = precisions
    write_json(context.output / "summary.json", summary)
    card = model_card(context.settings.name, scorecard, pick, student, teacher)
    (context.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return {"html_bytes": len(page.encode()), "recommended": pick["target"]}


def _summary(
    context: Context,
    scorecard: dict[str, Any],
    pick: dict[str, Any],
    evaluation: dict[str, Any],
    student: dict[str, Any],
    teacher: dict[str, Any],
) -> dict[str, Any]:
    """Return the main results of the run for scripts, in one document."""
    networks = {
        role: {
            name: value
            for name, value in evaluation[role].items()
            if name not in ("predictions", "confusion")
        }
        for role in ("teacher", "student", "baseline")
        if evaluation[role]
    }
    return {
        "schema_version": 1,
        "name": context.settings.name,
        "student": student["model"],
        "teacher": teacher["model"],
        "networks": networks,
        "distillation": evaluation["distillation"],
        "recommendation": pick,
        "scorecard": scorecard["rows"],
        "comparisons": scorecard["comparisons"],
        "machine": scorecard["machine"],
        "stages": [
            {
                "name": record.name,
                "status": record.status,
                "seconds": round(record.seconds, 3),
                "key": record.key,
            }
            for record in context.history
        ],
    }


def _stages(history: tuple[StageRecord, ...]) -> list[dict[str, str]]:
    words = {"hit": "reused", "ran": "ran"}
    return [
        {
            "name": record.name,
            "status": words.get(record.status, record.status),
            "seconds": f"{record.seconds:.1f}",
            "key": record.key[:12],
        }
        for record in history
    ]


def _history(path: Path) -> list[dict[str, float]]:
    """Read the rows of a history.csv without its empty fields; an empty list if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
