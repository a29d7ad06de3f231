"""Asks a TensorRT package what it can do here, in a process of its own.

    python -m stages.runtimes.probe tensorrt_rtx

Without a driver, TensorRT returns objects whose next call crashes the process; so it is tried in a process
whose crash is an answer. Prints one JSON line. Before the package, only the standard library and light
modules of kdpipe are imported.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

from pipeline.child_process import environment, last_line, python_command
from pipeline.heartbeat import Silence, run_while_alive
from stages.runtimes.tensorrt.messages import Messages

TIMEOUT_S = 120.0
"""Enough to import a package and try it on a network of one operator, whatever the user's model."""


@functools.cache
def ask(package: str) -> dict[str, Any]:
    """Return the result of `answer` in a subprocess; it is started once a process.

    `error` (a sentence) is set if the package cannot be used at all.
    """
    done = run_module("stages.runtimes.probe", package, timeout_s=TIMEOUT_S)
    if done is None:
        return {"error": f"the {package} package did not answer within {TIMEOUT_S:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        with suppress(ValueError):
            abilities: dict[str, Any] = json.loads(line)
            return abilities
    end = last_line(done.stderr) or "it wrote nothing to standard error"
    return {"error": f"the {package} package ended its process with status {done.returncode}: {end}"}


def run_module_while_alive(
    module: str, *words: str, doing: str, silence: Silence | None = None
) -> subprocess.CompletedProcess[str]:
    """Like `run_module`, for work whose length depends on the model. Raises Hung if it uses no CPU time."""
    command = python_command(module, *words)
    return run_while_alive(command, doing=doing, silence=silence, env=environment())


def run_module(module: str, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """Run `python -P -m module words` in a process of its own, however that ends.

    Returns:
        The ended process, its output as text with invalid bytes replaced; None if it took longer.
    """
    try:
        return subprocess.run(
            python_command(module, *words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None


def answer(package: str) -> dict[str, Any]:
    """Import the package and try it on a network of one operator.

    Returns:
        `version`, `device` (see `cuda_device`), `builds` and `runs`, each with `..._why_not`; `error` if the
        package cannot be imported.
    """
    facts: dict[str, Any] = {"device": cuda_device()}
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        return {**facts, "error": f"the {package} package cannot be imported: {error}"}
    facts["version"] = trt.__version__
    # This answer counts if the next call crashes the process.
    print(
        json.dumps({**facts, "error": f"{package} {trt.__version__} crashed while it was tried"}), flush=True
    )
    messages = Messages(trt)
    engine = None
    raised: list[str] = []
    try:
        engine = _tiny_engine(trt, messages.logger)
    except (RuntimeError, TypeError) as error:
        raised = [str(error)]
    facts["builds"] = engine is not None
    if engine is None:
        facts["builds_why_not"] = _sentence([*messages.errors(), *raised])
    facts["runs"] = False
    if facts["device"].get("error"):
        facts["runs_why_not"] = facts["device"]["error"]
    elif engine is not None:
        messages = Messages(trt)
        loaded = trt.Runtime(messages.logger).deserialize_cuda_engine(engine)
        facts["runs"] = loaded is not None and loaded.create_execution_context() is not None
        if not facts["runs"]:
            facts["runs_why_not"] = _sentence(messages.errors())
    return facts


def cuda_device() -> dict[str, str]:
    """Return the facts of the first CUDA device.

    Returns:
        `name`, `compute_capability`, `driver` (the CUDA version that it supports); or `error`, a sentence.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"error": "this machine has no NVIDIA driver"}
    code = cuda.cuInit(0)
    if code:
        return {"error": f"the NVIDIA driver finds no usable GPU (CUDA error {code})"}
    device, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), 0):
        return {"error": "the NVIDIA driver lists no GPU"}
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, 256, device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": ".".join(capability),
        "driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
    }


def _tiny_engine(trt: Any, logger: Any) -> Any:
    """Build the engine of a network of one operator; None if the builder gives none."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    tensor = network.add_input("input", trt.float32, (1, 4))
    network.mark_output(network.add_activation(tensor, trt.ActivationType.RELU).get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


def _sentence(messages: list[str]) -> str:
    return " ".join(messages[-1].split()) if messages else "it gave no reason"


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])), flush=True)
