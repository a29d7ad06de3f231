"""What the two TensorRT packages share: ability, preparing the graph, building, the sidecar.

The engine is built in a subprocess (`tensorrt_build`) and run by `tensorrt_session`. Light until
something is built or loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.runtimes import probe
from stages.runtimes.base import Ability, Source
from stages.runtimes.identity import gpu_facts
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt_build import Specification

if TYPE_CHECKING:
    import onnx

ENGINE = "model.engine"
SIDECAR = "engine.json"
TIMINGS = "timing.cache"
TIMINGS_FOLDER = "KDPIPE_TIMING_CACHE"
"""Environment variable: a folder to keep timings in from run to run; else they last for one build."""

HEARTBEAT_S = 5.0


def ability(package: str, install: str, *, to_run: bool, builds_on_gpu: bool) -> Ability:
    """Whether the package can build (or run) here; asked in a subprocess."""
    if importlib.util.find_spec(package) is None:
        why = f"the {package} package is not installed"
        if (to_run or builds_on_gpu) and gpu_facts()["gpu"] == "none":
            why += ", and this machine has no NVIDIA GPU with its driver"
        return Ability(False, why, install)
    told = probe.ask(package)
    if told.get("error"):
        return Ability(False, told["error"], install)
    versions = {package: str(told["version"])}
    device = told["device"]
    if not device.get("error"):
        versions |= {"gpu": device["name"], "cuda": device["driver"]}
    if to_run and not told["runs"]:
        return Ability(False, _because(told, "runs"), _gpu_mend(device, package), versions)
    if not to_run and not told["builds"]:
        return Ability(False, _because(told, "builds"), _gpu_mend(device, package), versions)
    return Ability(True, versions=versions)


def build(
    package: str,
    source: Source,
    output: Path,
    settings: BuildSettings,
    progress: Progress,
    work: Path,
    *,
    keeps_timings: bool,
) -> dict[str, Any]:
    """Writes `model.engine`, `engine.json` and, if it keeps timings, `timing.cache`.

    Raises StageError with the parser's, the builder's or the dead subprocess's own messages.
    """
    prepared, facts = prepare(source)
    device = probe.ask(package).get("device", {})
    timings = (
        _timings_file(package, device, work, progress) if keeps_timings and settings.timing_cache else None
    )
    specification = Specification(
        package=package,
        engine=str(output / ENGINE),
        timings=str(timings) if timings else "",
        batches=(settings.batch_min, settings.batch_opt, settings.batch_max),
        workspace_mb=settings.workspace_mb,
        optimization_level=settings.optimization_level,
        device=not device.get("error", "unknown"),
    )
    label = f"{package}-{source.precision}"
    done = _build_in_subprocess(specification, prepared.SerializeToString(), label, source, progress)
    if timings and timings.exists():
        shutil.copyfile(timings, output / TIMINGS)
    engine = (output / ENGINE).read_bytes()
    warnings, reused = done.pop("warnings"), done.pop("timings_reused")
    layers = done.pop("engine_layers")
    sidecar = {
        "schema_version": 1,
        "package": package,
        **done,
        "precision": source.precision,
        "gpu": device.get("name"),
        "compute_capability": device.get("compute_capability"),
        "optimization_level": settings.optimization_level,
        "workspace_mb": settings.workspace_mb,
        "size_bytes": len(engine),
        "sha256": hashlib.sha256(engine).hexdigest(),
    }
    (output / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    if reused:
        progress.note(f"{label}: started from earlier timings")
    return {
        **facts,
        "profile": done["profile"],
        "strongly_typed": True,
        "network_layers": done["network_layers"],
        "engine_layers": layers,
        "warnings": warnings,
        "reproducible": False,
    }


def prepare(source: Source) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph as TensorRT takes it, and what was done to it.

    TensorRT takes uint8 images but computes nothing with them: they become float at once. fp16 is
    put into the graph, because a strongly typed network does what its graph says.
    """
    import onnx

    from stages.runtimes import precision

    model = cast_images_first(onnx.load(str(source.onnx)))
    if source.precision != "fp16":
        return model, {}
    half, report = precision.to_half(model, source)
    return half, {"fp16": report.facts()}


def cast_images_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose uint8 input is cast to float32 before anything else; exact, as 0..255 are.

    A graph with float input comes back unchanged.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    image = graph.input[0]
    if image.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        return copy
    name = f"{image.name}__float"
    for node in graph.node:
        for place, used in enumerate(node.input):
            if used == image.name:
                node.input[place] = name
    to_float = onnx.helper.make_node(
        "Cast", [image.name], [name], name="images_to_float", to=onnx.TensorProto.FLOAT
    )
    graph.node.insert(0, to_float)
    del graph.value_info[:]  # types behind the cast are others now
    return copy


def read_sidecar(folder: Path, package: str, version: str, capability: str) -> dict[str, Any]:
    """The sidecar of an engine that fits this machine; checked before the SDK sees the engine,
    because a serialised engine is code.

    Raises StageError if the engine is not the one that was built, or was built for another
    version of the package or another GPU.
    """
    rebuild = "kdpipe build PROFILE, on the machine that is to run it"
    try:
        sidecar: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        digest = hashlib.sha256((folder / ENGINE).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise StageError(
            "the engine or its sidecar cannot be read", where=folder.name, why=str(error), mend=rebuild
        ) from error
    if digest != sidecar["sha256"]:
        raise StageError(
            "the engine is not the one that was built",
            where=f"{folder.name}/{ENGINE}",
            why=f"found SHA-256 {digest}, expected {sidecar['sha256']}",
            mend=rebuild,
        )
    if sidecar["package"] != package or sidecar["version"] != version:
        raise StageError(
            "the engine was built by another version of TensorRT",
            where=f"{folder.name}/{ENGINE}",
            why=f"found {sidecar['package']} {sidecar['version']}, here is {package} {version}",
            mend=rebuild,
        )
    built_for = sidecar["compute_capability"]
    if package == "tensorrt" and built_for != capability:
        raise StageError(
            "the engine was built for another GPU",
            where=f"{folder.name}/{ENGINE}",
            why=f"found compute capability {built_for} ({sidecar['gpu']}), this GPU has {capability}",
            mend=rebuild,
        )
    return sidecar


def _build_in_subprocess(
    specification: Specification, onnx: bytes, label: str, source: Source, progress: Progress
) -> dict[str, Any]:
    child = subprocess.Popen(
        [sys.executable, "-m", "stages.runtimes.tensorrt_build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=probe.child_environment(),
    )
    lines: queue.Queue[bytes | None] = queue.Queue()
    last_words: deque[str] = deque(maxlen=5)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    threads = [
        threading.Thread(target=_feed, args=(child.stdin, specification, onnx), daemon=True),
        threading.Thread(target=_listen, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=_drain, args=(child.stderr, last_words), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        outcome = _follow(lines, label, progress)
        status = child.wait()
        threads[2].join(timeout=5)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if "done" in outcome:
        done: dict[str, Any] = outcome["done"]
        return done
    if "fault" in outcome:
        fault = outcome["fault"]
        raise StageError(fault["what"], where=source.onnx.name, why=fault["why"], mend=fault["mend"])
    raise StageError(
        f"{specification.package} ended its process while building",
        where=source.onnx.name,
        why=f"status {status}: " + ("\n".join(last_words) or "it said nothing"),
        mend="a smaller build.workspace_mb or build.optimization_level may help; else leave this target out",
    )


def _follow(lines: queue.Queue[bytes | None], label: str, progress: Progress) -> dict[str, Any]:
    """Passes the child's progress on, with a heartbeat when it says nothing; returns its outcome."""
    started = time.monotonic()
    step, steps, phase = 0, 1, "starting"
    while True:
        try:
            line = lines.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            elapsed = f"{time.monotonic() - started:.0f} s"
            progress.update(step, steps, "steps", target=label, phase=phase, building_for=elapsed)
            continue
        if line is None:
            return {}
        message: dict[str, Any] = json.loads(line)
        if "progress" in message:
            phase, step, steps = message["progress"]
            progress.update(step, steps, "steps", target=label, phase=phase)
        elif "note" in message:
            progress.note(f"{label}: {message['note']}")
        else:
            return message


def _feed(pipe: IO[bytes], specification: Specification, onnx: bytes) -> None:
    with suppress(BrokenPipeError):  # the child died: its status tells
        pipe.write(json.dumps(asdict(specification)).encode() + b"\n" + onnx)
        pipe.close()


def _listen(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _drain(pipe: IO[bytes], last_words: deque[str]) -> None:
    for line in pipe:
        last_words.append(line.decode(errors="replace").rstrip())


def _timings_file(package: str, device: dict[str, Any], work: Path, progress: Progress) -> Path | None:
    """Where the timings of this version, GPU and driver are kept; their identity is the name."""
    version = probe.ask(package).get("version")
    if device.get("error") or not version:
        return None
    folder = Path(os.environ.get(TIMINGS_FOLDER) or work)
    folder.mkdir(parents=True, exist_ok=True)
    driver = gpu_facts()["driver"]
    identity = f"{package}-{version}-{device['name']}-sm{device['compute_capability']}-driver-{driver}"
    file = folder / (re.sub(r"[^A-Za-z0-9.-]+", "_", identity) + ".cache")
    others = [other for other in folder.glob(f"{package}-*.cache") if other != file]
    if others and not file.exists():
        progress.note(f"{package}: the kept timings are of another GPU, driver or version: timing anew")
    return file


def _because(told: dict[str, Any], what: str) -> str:
    device_error = told["device"].get("error")
    return str(device_error or told.get(f"{what}_why_not") or "it gave no reason")


def _gpu_mend(device: dict[str, Any], package: str) -> str:
    if device.get("error"):
        return "run this on a machine with an NVIDIA GPU and its driver (nvidia-smi must list the GPU)"
    return f"see which GPUs this version supports: pip index versions {package.replace('_', '-')}"
