"""One function writes the options of ONNX Runtime's sessions, and it obeys affinity and CPU quota."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.onnx_files.session_options import session_options
from tests.command import environment
from tests.stages.runtimes.networks import exported

STAGES = Path(__file__).resolve().parents[3] / "stages"

ON_ITS_OWN = STAGES / "bundle" / "predict.py"
"""The bundle's program imports nothing of ours; tests/stages/bundle/test_contract.py compares the two."""


def _calls(name: str) -> dict[str, list[ast.Call]]:
    """Map each file of the stages to its calls of the attribute or function `name`."""
    calls: dict[str, list[ast.Call]] = {}
    for file in STAGES.rglob("*.py"):
        if file == ON_ITS_OWN:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = getattr(node, "func", None)
            if isinstance(node, ast.Call) and name in (
                getattr(called, "attr", ""),
                getattr(called, "id", ""),
            ):
                calls.setdefault(file.relative_to(STAGES).as_posix(), []).append(node)
    return calls


def test_session_options_are_written_in_one_place() -> None:
    assert list(_calls("SessionOptions")) == ["onnx_files/session_options.py"]


@pytest.mark.long
def test_every_session_gets_options() -> None:
    sessions = _calls("InferenceSession")
    assert len(sessions) >= 4
    bare = [
        f"{file}:{call.lineno}"
        for file, calls in sessions.items()
        for call in calls
        if len(call.args) < 2 and "sess_options" not in {word.arg for word in call.keywords}
    ]
    assert bare == []


OPEN_EVERYWHERE = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, onnx, onnxruntime
from pipeline.stage import Silent
from stages.onnx_files.sessions import open_session
from stages.runtimes import parity, registry
from stages.runtimes.half import magnitudes
from stages.runtimes.images import natural_images
from stages.runtimes.settings import BuildSettings
from tests.stages.runtimes.networks import source_of
counts = []
opened = onnxruntime.InferenceSession
class Counting(opened):
    def __init__(self, *args, **words):
        super().__init__(*args, **words)
        counts.append(self.get_session_options().intra_op_num_threads)
onnxruntime.InferenceSession = Counting
source, output = source_of("cnn"), Path(sys.argv[1])
open_session(source.onnx)
parity.source_logits(source.onnx, source, natural_images(source.image_shape, 2))
registry.get("onnxruntime").build(source, output, BuildSettings(), Silent(), output)
magnitudes.activation_magnitudes(onnx.load(str(source.onnx)), source, natural_images(source.image_shape, 1))
print(json.dumps(counts))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_bound_to_one_core_starts_one_thread(tmp_path: Path) -> None:
    exported("cnn")
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EVERYWHERE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 1, 1, 1]


def test_a_number_of_threads_that_is_given_counts() -> None:
    options = session_options(threads=3)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
