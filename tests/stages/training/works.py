"""Works for `launch` in two processes, and a program that starts one of them: python -m ... FOLDER."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.errors import UsageError
from pipeline.stage import Context, Metrics
from stages.training import fabric as fabrics
from tests.stages.training import tiny

TWO = {"device": "cpu", "precision": "fp32", "devices": 2, "threads": 2}


def refuse_in_the_second(fabric: Fabric, context: Context) -> Metrics:
    """The second process fails while the first waits for it."""
    if fabric.global_rank == 1:
        raise UsageError("Only the second process sees this", where="here", why="a test", hint="nothing")
    fabric.barrier()
    return {}


def report_without_end(fabric: Fabric, context: Context) -> Metrics:
    """Leaves its process id in a file; the first process reports as fast as it can."""
    (context.work / f"{fabric.global_rank}.pid").write_text(str(os.getpid()), encoding="ascii")
    while True:
        if fabric.global_rank:
            time.sleep(60)
        context.progress.update(1, 2, figure="x" * 1000)


def statistics_of_each(fabric: Fabric, context: Context) -> Metrics:
    """The running mean of each process, which sees a batch of its own number."""
    module = fabric.setup(nn.BatchNorm1d(1, momentum=0.5), move_to_device=False)
    for _ in range(2):
        module(torch.full((4, 1), float(fabric.global_rank)) + torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]))
    means = fabric.all_gather(module.module.running_mean)
    return {"means": means.flatten().tolist()}


class Stuck:
    """A terminal that takes nothing any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        (self.folder / "stuck").touch()
        while True:
            time.sleep(60)

    def note(self, text: str) -> None:
        pass


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = tiny.settings("train", compute=TWO)
    try:
        fabrics.launch(report_without_end, tiny.context(folder, settings, progress=Stuck(folder)))
    except KeyboardInterrupt:
        sys.exit(130)
