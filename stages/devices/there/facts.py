"""What the device is and has: asked without loading anything into this process."""

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

TRTEXEC_PLACES = (
    "/usr/src/tensorrt/bin/trtexec",
    "/usr/local/tensorrt/bin/trtexec",
    "/opt/tensorrt/bin/trtexec",
)
"""Where the SDK's packages put it, beside the PATH; the first is JetPack's and Debian's."""

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
    """`machine` (as the scorecard tells it), `board`, `python`, `numpy`, `runtimes`, `trtexec` and its
    version, `folder`.

    Each of `numpy` and `runtimes` has `version`, or `error`; a TensorRT also `builds` and `runs`.
    """
    place = Path.home() / folder
    nearest = next(path for path in (place, *place.parents) if path.exists())
    disk = shutil.disk_usage(nearest)
    with ThreadPoolExecutor() as pool:  # each asks a process of its own
        asked = {name: pool.submit(how, name) for name, how in ASKED.items()}
    told = {name: answer.result() for name, answer in asked.items()}
    program = trtexec()
    return {
        "machine": machine.describe(),
        "board": board(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "numpy": told.pop("numpy"),
        "runtimes": told,
        "trtexec": program,
        "trtexec_version": trtexec_program.inspect(program).version if program else None,
        "gpu": probe.cuda_device(),
        "folder": {"path": str(place), "free_bytes": disk.free, "writable": os.access(nearest, os.W_OK)},
        "load_average": machine.load_average(),
    }


def board() -> str | None:
    """The board's name by the device tree, or the maker's by the firmware; None if neither tells."""
    for name in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        try:
            told = Path(name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if told:
            return told
    return None


def trtexec() -> str | None:
    """Where trtexec lies; None if it is not there."""
    found = shutil.which("trtexec")
    return found or next((place for place in TRTEXEC_PLACES if os.access(place, os.X_OK)), None)


def _version(package: str) -> dict[str, Any]:
    try:
        told = subprocess.run(
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
        answer: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"importing it ended the process with status {told.returncode}"}
    return answer


def _tensorrt(package: str) -> dict[str, Any]:
    """Tried in a process of its own: without a driver its objects crash."""
    told = probe.ask(package)
    if told.get("error"):
        return {"error": told["error"]}
    return {name: told.get(name) for name in ("version", "builds", "runs", "builds_why_not", "runs_why_not")}


ASKED = {
    "numpy": _version,
    "onnxruntime": _version,
    "openvino": _version,
    "tensorrt": _tensorrt,
    "tensorrt_rtx": _tensorrt,
}
