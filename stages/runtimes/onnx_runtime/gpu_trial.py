"""Tries one of ONNX Runtime's GPU providers, in a process of its own.

    python -m stages.runtimes.onnx_runtime.gpu_trial CUDAExecutionProvider

ONNX Runtime falls back to the CPU when a provider's libraries cannot be loaded, and writes the reason only to
its log; so a network of one operator is run where that log can be read. Prints one JSON line. Light until the
package is imported.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from pipeline.child_process import last_line
from stages.runtimes.probe import cuda_device, run_module

TIMEOUT_S = 180.0
"""Enough to load CUDA's libraries and run a network of one operator, whatever the user's model."""


@functools.cache
def ask(provider: str) -> dict[str, Any]:
    """Try a provider in a subprocess; it is started once a process.

    Returns:
        `version`, `device` (see `probe.cuda_device`), `available`, `found` (the provider of the session), or
        `error`, a sentence.
    """
    done = run_module("stages.runtimes.onnx_runtime.gpu_trial", provider, timeout_s=TIMEOUT_S)
    if done is None:
        return {"error": f"ONNX Runtime did not answer within {TIMEOUT_S:.0f} s", "device": {}}
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        with suppress(ValueError):
            facts = json.loads(line)
    if done.returncode != 0 or not facts:
        last = last_line(done.stderr) or "it wrote nothing to standard error"
        return {"device": {}, **facts, "error": f"ONNX Runtime ended with status {done.returncode}: {last}"}
    if "error" not in facts and facts["found"] != provider:
        reason = reason_in_log(done.stderr)
        facts["error"] = f"ONNX Runtime fell back to {facts['found']}: {reason or 'its log has no reason'}"
    return facts


def reason_in_log(log: str) -> str:
    """Return why a provider was not loaded, from ONNX Runtime's log; "" if the log has no reason.

    The first error is the cause: the later ones only follow from it.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    missing = re.search(r"with error: (.+)", plain)
    if missing:
        return missing.group(1).strip()
    error = re.search(r"\[E:onnxruntime:[^\]]*\] (.+)", plain)
    return error.group(1).strip() if error else ""


def load_libraries(provider: str) -> None:
    """Load CUDA's, cuDNN's and TensorRT's libraries from the installed Python packages.

    ONNX Runtime finds libraries of the system by itself.
    """
    import onnxruntime

    if provider == "TensorrtExecutionProvider" and find_spec("tensorrt") is not None:
        with suppress(ImportError, OSError):
            __import__("tensorrt")
    onnxruntime.preload_dlls()


def answer(provider: str) -> dict[str, Any]:
    """Try a provider in this process; like `ask`, without the reasons that only the log has."""
    facts: dict[str, Any] = {"device": cuda_device()}
    import onnxruntime

    from stages.onnx_files.session_options import WARNINGS, session_options

    facts |= {"version": onnxruntime.__version__, "available": onnxruntime.get_available_providers()}
    if provider not in facts["available"]:
        driver = facts["device"].get("error")
        without = f", and {driver}" if driver else ""
        return {
            **facts,
            "error": f"the installed ONNX Runtime {onnxruntime.__version__} has no {provider}: "
            f"it is the package for CPUs{without}",
        }
    load_libraries(provider)
    # Its log gives the reason of a fallback, in errors and in warnings.
    options = session_options(threads=1, severity=WARNINGS)
    session = onnxruntime.InferenceSession(_one_operator(), options, providers=[provider])
    if session.get_providers()[0] == provider and facts["device"].get("error"):
        return {**facts, "error": facts["device"]["error"]}
    if session.get_providers()[0] == provider:
        import numpy as np

        session.run(None, {"x": np.ones((1, 4), np.float32)})
    return {**facts, "found": session.get_providers()[0]}


def _one_operator() -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in "xy"]
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "graph", edges[:1], edges[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    text: bytes = model.SerializeToString()
    return text


def main(provider: str) -> int:
    """Print the answer of a provider as one JSON line; return the exit code."""
    # The package prints hints; they must not mix with the answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        print(json.dumps(answer(provider)), file=channel, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
