"""Asks a TensorRT package what it can do here, in a process of its own.

    python -m stages.runtimes.probe tensorrt_rtx

A TensorRT without a driver hands out objects whose next call crashes the process; so the question is put
where a crash is an answer. Prints one JSON line. Until the package itself, only the standard library and
light modules of kdpipe are imported.
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

TIMEOUT_S = 120.0
"""Enough to import a package and try it on a network of one operator, whatever the user's model."""


@functools.cache
def ask(package: str) -> dict[str, Any]:
    """What `answer` told in a subprocess; asked once a process.

    `error` (a sentence) is set if the package cannot be used at all.
    """
    done = run_module("stages.runtimes.probe", package, timeout_s=TIMEOUT_S)
    if done is None:
        return {"error": f"the {package} package did not answer within {TIMEOUT_S:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        with suppress(ValueError):
            told: dict[str, Any] = json.loads(line)
            return told
    end = last_line(done.stderr) or "it wrote nothing to standard error"
    return {"error": f"the {package} package ended its process with status {done.returncode}: {end}"}


def run_module_while_alive(
    module: str, *words: str, doing: str, silence: Silence | None = None
) -> subprocess.CompletedProcess[str]:
    """Like `run_module`, for work whose length depends on the model. Raises Hung if it uses no CPU time."""
    command = python_command(module, *words)
    return run_while_alive(command, doing=doing, silence=silence, env=environment())


def run_module(module: str, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """`python -P -m module words`, run to its end in a process of its own, whatever becomes of it there; None
    if it took longer. What it prints is kept as text, bytes that are none replaced."""
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
    """`version`, `device` (see `cuda_device`), `builder` and `runs`, each with `..._why_not`."""
    told: dict[str, Any] = {"device": cuda_device()}
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        return {**told, "error": f"the {package} package cannot be imported: {error}"}
    told["version"] = trt.__version__
    # What is written so far stands even if the next call brings the process down.
    print(
        json.dumps({**told, "error": f"{package} {trt.__version__} crashed while it was tried"}), flush=True
    )
    messages: list[str] = []

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                messages.append(message)

    log = Log()
    engine = None
    try:
        engine = _tiny_engine(trt, log)
    except (RuntimeError, TypeError) as error:
        messages.append(str(error))
    told["builds"] = engine is not None
    if engine is None:
        told["builds_why_not"] = _sentence(messages)
    told["runs"] = False
    if told["device"].get("error"):
        told["runs_why_not"] = told["device"]["error"]
    elif engine is not None:
        messages.clear()
        loaded = trt.Runtime(log).deserialize_cuda_engine(engine)
        told["runs"] = loaded is not None and loaded.create_execution_context() is not None
        if not told["runs"]:
            told["runs_why_not"] = _sentence(messages)
    return told


def cuda_device() -> dict[str, str]:
    """The first CUDA device: `name`, `compute_capability`, `driver` (the CUDA version that it
    supports); or `error`, a sentence."""
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


def _tiny_engine(trt: Any, log: Any) -> Any:
    """The engine of a network of one operator, or None if the builder gives none."""
    builder = trt.Builder(log)
    network = builder.create_network(0)
    tensor = network.add_input("input", trt.float32, (1, 4))
    network.mark_output(network.add_activation(tensor, trt.ActivationType.RELU).get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


def _sentence(messages: list[str]) -> str:
    return " ".join(messages[-1].split()) if messages else "it gave no reason"


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])), flush=True)
