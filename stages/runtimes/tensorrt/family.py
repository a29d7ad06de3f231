"""The parts that the two TensorRT packages share: ability, preparing the graph, building.

A subprocess builds the engine (`process`, `build`), a sidecar describes it (`sidecar`), and `session` runs
it. Light until something is built or loaded.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.machine import gpu_facts
from pipeline.stage import Progress
from stages.runtimes import probe
from stages.runtimes.base import Ability, Source
from stages.runtimes.half.kinds import HALVES
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.runtimes.tensorrt import process as tensorrt_process
from stages.runtimes.tensorrt import sidecar as tensorrt_sidecar
from stages.runtimes.tensorrt import timings as tensorrt_timings
from stages.runtimes.tensorrt.build import Specification
from stages.runtimes.tensorrt.sidecar import ENGINE, numbers

if TYPE_CHECKING:
    import onnx

TIMINGS = "timing.cache"

OLDEST = {"tensorrt": (10, 12)}
"""Older versions lack the strongly typed networks that are built here."""


def ability(package: str, install: str, *, to_run: bool, builds_on_gpu: bool) -> Ability:
    """Return whether the package can build or run engines here; it is tried in a subprocess.

    Args:
        package: `tensorrt` or `tensorrt_rtx`.
        install: the command that installs it.
        to_run: whether to run; otherwise to build.
        builds_on_gpu: whether building needs a GPU.
    """
    if importlib.util.find_spec(package) is None:
        why = f"the {package} package is not installed"
        if (to_run or builds_on_gpu) and gpu_facts()["gpu"] == "none":
            why += ", and this machine has no NVIDIA GPU with its driver"
        return Ability(False, why, install)
    abilities = probe.ask(package)
    if abilities.get("error"):
        return Ability(False, abilities["error"], install)
    versions = {package: str(abilities["version"])}
    oldest = OLDEST.get(package, ())
    if numbers(versions[package]) < oldest:
        minimum = ".".join(map(str, oldest))
        return Ability(False, f"{package} {versions[package]} is older than {minimum}", install, versions)
    device = abilities["device"]
    if not device.get("error"):
        versions |= {"gpu": device["name"], "cuda": device["driver"]}
    if to_run and not abilities["runs"]:
        return Ability(False, _reason(abilities, "runs"), _gpu_hint(device, package), versions)
    if not to_run and not abilities["builds"]:
        return Ability(False, _reason(abilities, "builds"), _gpu_hint(device, package), versions)
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
    """Write `model.engine`, `engine.json` and, if it keeps timings, `timing.cache`.

    Args:
        package: `tensorrt` or `tensorrt_rtx`.
        source: the file to build from.
        output: the folder that gets the files.
        settings: the profile's section `build`.
        progress: takes progress and notes.
        work: where timings are kept for the next build.
        keeps_timings: whether the package has timings to keep.

    Returns:
        The builder's facts; see `stages.runtimes.base.Runtime.build`.

    Raises:
        StageError: parser or builder refuse the file, or the subprocess dies; with its own messages.
    """
    label = f"{package}-{source.precision}"
    options = tensorrt_options.options_of(package, settings.model_dump())
    progress.update(0.0, 100.0, "%", target=label, phase="preparing the graph")
    prepared, facts = prepare(source, settings, progress.note)
    if facts.get(source.precision, {}).get("advice"):
        progress.note(f"{label}: {facts[source.precision]['advice']}")
    abilities = probe.ask(package)
    device = abilities.get("device", {})
    identity = tensorrt_timings.identity(package, abilities)
    folder = tensorrt_timings.folder(work)
    timings = folder / f"{identity}.cache" if keeps_timings and settings.timing_cache and identity else None
    if timings:
        tensorrt_timings.note_other_timings(timings, package, progress)
    specification = Specification(
        package=package,
        engine=str(output / ENGINE),
        timings=str(timings) if timings else "",
        batches=settings.batches,
        workspace_mb=settings.workspace_mb,
        optimization_level=settings.optimization_level,
        device="name" in device,
        options=options,
    )
    key = tensorrt_timings.duration_key(
        specification, identity or package, source.precision, len(prepared.graph.node)
    )
    started = time.monotonic()
    done = tensorrt_process.run(
        specification,
        prepared.SerializeToString(),
        label=label,
        where=source.onnx.name,
        progress=progress,
        earlier_s=tensorrt_timings.read_duration(folder, key),
    )
    tensorrt_timings.save_duration(folder, key, time.monotonic() - started)
    if timings and timings.exists():
        shutil.copyfile(timings, output / TIMINGS)
    warnings, reused = done.pop("warnings"), done.pop("timings_reused")
    layers = done.pop("engine_layers")
    tensorrt_sidecar.write(output, specification, done, device, precision=source.precision)
    if reused:
        progress.note(f"{label}: started from earlier timings")
    return {
        **facts,
        "profile": done["profile"],
        "tuned_for_batch": settings.batches[1],
        "batch_min": settings.batches[0],
        "batch_max": settings.batches[2],
        "strongly_typed": True,
        "network_layers": done["network_layers"],
        "engine_layers": layers,
        "engine_layers_why_not": None if layers else _not_inspected(specification.device),
        "warnings": warnings,
        "reproducible": False,
    }


def prepare(
    source: Source, settings: BuildSettings | None = None, note: Callable[[str], None] = lambda _text: None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the graph in the form that TensorRT takes, and what was done to it.

    TensorRT takes uint8 images but computes nothing with them: they become float at once. fp16 and bf16
    are put into the graph, because a strongly typed network computes in the types of its graph.

    Args:
        source: the file.
        settings: `keep_float`, the precision's limit and `prove` count; None: the defaults.
        note: without `prove`, takes a note that the converted graph computes something else.

    Raises:
        StageError: the graph cannot be converted, or its converted form computes something else.
    """
    import onnx

    from stages.runtimes.half import converting as precision

    model = cast_images_first(onnx.load(str(source.onnx)))
    if source.precision not in HALVES:
        return model, {}
    settings = settings or BuildSettings()
    half, report = precision.to_half(
        model,
        source,
        settings.keep_float,
        limit=getattr(settings, f"limit_{source.precision}"),
        note=None if settings.prove else note,
    )
    return half, {source.precision: report.facts()}


def cast_images_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose uint8 input is cast to float32 before anything else; 0..255 are exact in float32.

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
        for position, used in enumerate(node.input):
            if used == image.name:
                node.input[position] = name
    to_float = onnx.helper.make_node(
        "Cast", [image.name], [name], name="images_to_float", to=onnx.TensorProto.FLOAT
    )
    graph.node.insert(0, to_float)
    del graph.value_info[:]  # the types after the cast have changed
    return copy


def _not_inspected(device: bool) -> str:
    if device:
        return "TensorRT did not load the engine here to inspect it"
    return "only a machine with a GPU can inspect an engine"


def _reason(abilities: dict[str, Any], what: str) -> str:
    device_error = abilities["device"].get("error")
    return str(device_error or abilities.get(f"{what}_why_not") or "it gave no reason")


def _gpu_hint(device: dict[str, Any], package: str) -> str:
    if device.get("error"):
        return "run this on a machine with an NVIDIA GPU and its driver (nvidia-smi must list the GPU)"
    return f"see which GPUs this version supports: pip index versions {package.replace('_', '-')}"
