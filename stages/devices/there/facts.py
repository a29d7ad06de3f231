"""What the device is and has, found without loading any runtime into this process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.child_process import python_code
from stages.devices.there import trtexec_program
from stages.runtimes import probe

TRTEXEC_PATHS = (
    "/usr/src/tensorrt/bin/trtexec",
    "/usr/local/tensorrt/bin/trtexec",
    "/opt/tensorrt/bin/trtexec",
)
"""Where the SDK's packages put it, besides the PATH; the first is JetPack's and Debian's."""

TIMEOUT_S = 120.0
"""Enough to import a package, also from a slow card."""

_IMPORT = """
import json, sys
sys.modules["openvino_telemetry"] = None  # it would report the import to its makers
name = sys.argv[1]
try:
    print("\\n" + json.dumps({"version": str(__import__(name).__version__)}))
except Exception as error:
    print("\\n" + json.dumps({"error": str(error) or type(error).__name__}))
"""


def facts(folder: str) -> dict[str, Any]:
    """Return what the device is and has.

    Args:
        folder: kdpipe's folder on the device.

    Returns:
        `machine` (like in the scorecard), `board`, `python`, `numpy`, `runtimes`, `trtexec` (a path or None)
        and `trtexec_version`, `gpu`, `folder`, `load_average`. Each of `numpy` and `runtimes` has `version`,
        or `error`; a TensorRT has `builds` and `runs` too.
    """
    path = Path.home() / folder
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    disk = shutil.disk_usage(nearest)
    with ThreadPoolExecutor() as pool:  # each question starts a process of its own
        futures = {name: pool.submit(question, name) for name, question in QUESTIONS.items()}
    answers = {name: future.result() for name, future in futures.items()}
    program = trtexec()
    return {
        "machine": machine.describe(),
        "board": board(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "numpy": answers.pop("numpy"),
        "runtimes": answers,
        "trtexec": program,
        "trtexec_version": trtexec_program.inspect(program).version if program else None,
        "gpu": probe.cuda_device(),
        "folder": {"path": str(path), "free_bytes": disk.free, "writable": os.access(nearest, os.W_OK)},
        "load_average": machine.load_average(),
    }


def board() -> str | None:
    """Return the board's name from the device tree, or the maker's from the firmware; None without either."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        try:
            name = Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if name:
            return name
    return None


def trtexec() -> str | None:
    """Return the path of trtexec; None if it is not installed."""
    on_path = shutil.which("trtexec")
    return on_path or next((path for path in TRTEXEC_PATHS if os.access(path, os.X_OK)), None)


def _version(package: str) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - this very Python
            python_code(_IMPORT, package),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it was not imported within {TIMEOUT_S:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"importing it ended the process with status {done.returncode}"}
    return answer


def _tensorrt(package: str) -> dict[str, Any]:
    """Try the package in a process of its own: without a driver its objects crash."""
    abilities = probe.ask(package)
    if abilities.get("error"):
        return {"error": abilities["error"]}
    names = ("version", "builds", "runs", "builds_why_not", "runs_why_not")
    return {name: abilities.get(name) for name in names}


QUESTIONS = {
    "numpy": _version,
    "onnxruntime": _version,
    "openvino": _version,
    "tensorrt": _tensorrt,
    "tensorrt_rtx": _tensorrt,
}
"""By package, the function that finds out about it."""
