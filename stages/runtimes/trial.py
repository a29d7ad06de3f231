"""The trials of `kdpipe doctor`, each in a process of its own: a package that crashes is an answer too.

    python -m stages.runtimes.trial stages          which stages can be imported
    python -m stages.runtimes.trial runtimes        the runtimes there are
    python -m stages.runtimes.trial runtime NAME    what one of them can do here
    python -m stages.runtimes.trial build           a small network exported, loaded, run, compared

Each prints JSON lines on standard output; a line counts even if the process dies later.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

TOLERANCE = 1e-4


def try_stages() -> None:
    """Print a line for each stage: its name, and why its module cannot be imported (or null)."""
    from stages import STAGES

    for stage in STAGES:
        try:
            importlib.import_module(stage.module)
            why_not = None
        except Exception as error:  # whatever a half-installed library raises
            why_not = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        _print_json({"stage": stage.name, "why_not": why_not})


def list_runtimes() -> None:
    """Print one line: the names of all runtimes."""
    from stages.runtimes import registry

    _print_json({"runtimes": registry.names()})


def try_runtime(name: str) -> None:
    """Print one line: the runtime's targets, and its abilities to build and to run."""
    from stages.runtimes import registry

    runtime = registry.get(name)
    build, run = runtime.ability_to_build(), runtime.ability_to_run()
    _print_json(
        {
            "runtime": name,
            "targets": [f"{name}-{precision}" for precision in runtime.precisions],
            "can_build": build.can,
            "can_run": run.can,
            "why_not": (build.why_not if not build.can else run.why_not if not run.can else "") or None,
            "hint": (build.hint if not build.can else run.hint if not run.can else "") or None,
            "versions": build.versions,
        }
    )


def try_build() -> None:
    """Print one line: how long it took, and the largest difference between PyTorch and ONNX Runtime."""
    started = time.perf_counter()
    import numpy as np
    import torch

    from stages.onnx_files.sessions import open_session

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).eval()
    images = torch.randn(2, 3, 16, 16)
    program = torch.onnx.export(network, (images,), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    session = open_session(program.model_proto.SerializeToString())
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = network(images).numpy()
    difference = float(np.abs(logits - expected).max())
    works = difference < TOLERANCE
    _print_json(
        {
            "works": works,
            "seconds": round(time.perf_counter() - started, 3),
            "max_difference": difference,
            "comparison": f"ONNX Runtime and PyTorch differ by {difference:.1g} at most",
            "why_not": None if works else f"ONNX Runtime and PyTorch differ by {difference:.3g}",
        }
    )


def _print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


VERBS: dict[str, Callable[..., None]] = {
    "stages": try_stages,
    "runtimes": list_runtimes,
    "runtime": try_runtime,
    "build": try_build,
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
