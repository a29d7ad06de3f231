"""Trains in no time, noisily, and does wrong when it is told to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from pipeline.errors import GateMissed, MachineCannot
from pipeline.stage import Context, Metrics

HISTORY = "epoch,learning_rate,train_loss,val_loss,val_top1\n1,0.1,0.9,0.8,91.5\n2,0.01,0.4,0.5,98.5\n"


def run(context: Context) -> Metrics:
    print("a library says hello on standard output")
    os.write(1, b"a C++ library says hello on descriptor 1\n")
    trouble = os.environ.get("SMALL_TROUBLE", "")
    if trouble == "gate":
        raise GateMissed(
            "top-1 is below its gate", where="stage train", why="found 90, expected 95", hint="train on"
        )
    if trouble == "machine":
        raise MachineCannot("this machine cannot train", why="it is too small", hint="take another")
    if trouble == "defect":
        raise ZeroDivisionError("no such luck")
    if trouble == "slow":
        (context.work / "checkpoint").write_text("halfway")
        for step in range(10_000):
            context.progress.update(step, 10_000, "steps")
            time.sleep(0.01)
    if trouble == "wait":
        (context.work / "checkpoint").write_text("halfway")
        deadline = time.monotonic() + 60
        while not Path("go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    (context.output / "history.csv").write_text(HISTORY)
    (context.output / "weights.txt").write_text(str(np.float32(context.settings.seed)))
    context.progress.note("trained in no time")
    return {"val_top1": 98.5, "epochs": context.settings.train.epochs, "size_bytes": 1_430_000}
