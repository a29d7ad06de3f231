"""Adds up what was gathered; goes on from a checkpoint; and does wrong when it is told to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

from pipeline.errors import StageError, UsageError
from pipeline.stage import Context, Metrics


def check(settings: SimpleNamespace) -> None:
    if settings.refine.fault == "refuse early":
        raise UsageError("refine cannot do this", hint="say something else")


def run(context: Context) -> Metrics:
    settings = context.settings.refine
    with Path(settings.trace).open("a", encoding="utf-8") as trace:
        trace.write("refine\n")
    checkpoint = context.work / "checkpoint.txt"
    resumed = checkpoint.exists()
    (context.output / "half.txt").write_text("half", encoding="utf-8")
    if settings.fault != "no checkpoint":
        checkpoint.write_text("halfway", encoding="utf-8")
    _do_wrong(context, settings.fault)
    if not resumed:
        time.sleep(settings.pause_s)
    (context.output / "half.txt").unlink()
    numbers = json.loads((context.inputs["gather"] / "deep" / "numbers.json").read_text(encoding="utf-8"))
    total = sum(numbers) * (settings.rounds // 2) + context.settings.seed
    (context.output / "sum.txt").write_text(f"{total} {settings.steps[0].weight}", encoding="utf-8")
    return {"sum": total, "resumed": resumed}


def _do_wrong(context: Context, fault: str | None) -> None:
    if fault == "crash":
        checkpoint = context.work / "checkpoint.txt"
        checkpoint.unlink()
        raise ZeroDivisionError("no such luck")
    if fault == "no checkpoint":
        raise StageError("refine gives up", where="stage refine")
    if fault == "keep checkpoint":
        raise StageError("refine gives up", where="stage refine")
    if fault == "refuse late":
        (context.work / "checkpoint.txt").unlink()
        raise UsageError("refine cannot do this after all")
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "link":
        (context.output / "link").symlink_to(context.inputs["gather"] / "count.txt")
    if fault == "hard link":
        os.link(context.inputs["gather"] / "count.txt", context.output / "hard")
    if fault == "manifest":
        (context.output / "artefact.json").write_text("{}", encoding="utf-8")
