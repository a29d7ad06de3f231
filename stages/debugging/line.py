"""Compare every conversion of a network with the step before it, on real test images.

PyTorch -> the exported ONNX file -> its fp16, bf16 or INT8 form -> the built target. A target's results come
from the file that ships. Its layers are compared where the runtime gives access to their values (ONNX
Runtime, OpenVINO), otherwise only its logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from pipeline.errors import StageError, UsageError
from pipeline.stage import Progress
from stages.data.load import load as load_data
from stages.debugging.bisecting import bisect
from stages.debugging.minimal_model import Case
from stages.debugging.pair import compare_graphs
from stages.debugging.step_report import conclude, skipped
from stages.models.card import load as load_network
from stages.onnx_files.graphs import Graph, read_graph, values_of
from stages.onnx_files.metadata import INPUT, feed, image_shape
from stages.runtimes import registry
from stages.runtimes.base import Runtime, Source
from stages.runtimes.half.kinds import HALVES
from stages.runtimes.identity import ON_GPU
from stages.runtimes.parity import compare, source_logits

TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.15, "int8": 0.5}
"""Defaults of --tolerance by precision: root mean square of a layer's differences over its values' spread.

A healthy INT8 student has 0.05 to 0.3 in its last layers.
"""

BASELINE = "onnxruntime-fp32"


@dataclass(frozen=True)
class DebugOptions:
    """The options of `kdpipe debug`.

    Attributes:
        model: The network.
        target: The target; None compares all of the profile's.
        tolerance: The tolerance; None uses the precision's default.
        images: Number of test images.
    """

    model: Literal["student", "teacher"]
    target: str | None
    tolerance: float | None
    images: int


@dataclass(frozen=True)
class _DebugRun:
    """The inputs that all steps share.

    Attributes:
        folders: The stages' artefacts.
        options: The command's options.
        card: The exported network's card.
        images: uint8 (n, H, W, C), test images.
        output: The folder of the minimal models.
        keep_float: The profile's `build.keep_float`.
    """

    folders: Mapping[str, Path]
    options: DebugOptions
    card: dict[str, Any]
    images: np.ndarray
    output: Path
    keep_float: Sequence[str]

    @property
    def exported(self) -> Path:
        """Return the exported ONNX file."""
        return self.folders["export"] / f"{self.options.model}.onnx"

    def tolerance(self, precision: str) -> float:
        """Return the tolerance for a precision."""
        return TOLERANCES[precision] if self.options.tolerance is None else self.options.tolerance

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the ONNX file's inputs by name."""
        return {INPUT: feed(self.images, self.card)}

    def source(self, file: Path, precision: str) -> Source:
        """Describe an ONNX file as the source of a target."""
        facts = self.card["preprocessing"]
        return Source(
            onnx=file,
            precision=precision,
            image_shape=image_shape(self.card),
            input=self.card["input"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
        )


def debug_line(
    settings: SimpleNamespace,
    folders: Mapping[str, Path],
    options: Mapping[str, Any],
    output: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the conversions of a profile's network, and write a minimal model for each divergence.

    Args:
        settings: The profile's settings, with `build`, `data` and `targets`.
        folders: The artefacts of train, distill, export, quantize and build, by stage.
        options: The fields of `DebugOptions`.
        output: The folder of the minimal models, one folder a step.
        progress: Receives the finished steps.

    Returns:
        The JSON-ready result.

    Raises:
        UsageError: If the profile does not have the target.
    """
    selection = DebugOptions(**options)
    targets = _targets(settings, selection)
    test = load_data(settings.data).test
    chosen = np.linspace(0, len(test.labels) - 1, min(selection.images, len(test.labels))).astype(np.int64)
    card = json.loads((folders["export"] / f"{selection.model}.json").read_text(encoding="utf-8"))
    debug_run = _DebugRun(
        folders, selection, card, test.images.batch(chosen), output, settings.build.keep_float
    )
    steps = []
    for done, step in enumerate(_steps(debug_run, targets)):
        progress.update(done + 1, done + 1, "steps", step=step["step"])
        steps.append(step)
    return {"healthy": all(step["healthy"] for step in steps), "images": len(chosen), "steps": steps}


def _targets(settings: SimpleNamespace, options: DebugOptions) -> list[str]:
    if options.model == "teacher":
        names = [BASELINE]
    else:
        names = [target.name for target in settings.targets]
    if options.target is None:
        return names
    if options.target not in names:
        raise UsageError(
            f"The {options.model} has no target {options.target}",
            where="kdpipe debug --target",
            why=f"its targets are {', '.join(names)}",
            hint="choose one of them, or add it to the profile's targets",
        )
    return [options.target]


def _steps(debug_run: _DebugRun, targets: list[str]) -> Iterator[dict[str, Any]]:
    yield _from_torch(debug_run)
    seen: set[str] = set()
    for name in targets:
        runtime = registry.check_target(name)
        precision = registry.target_parts(name)[1]
        source = debug_run.exported
        if precision == "int8":
            source = debug_run.folders["quantize"] / f"{debug_run.options.model}.int8.{runtime.recipe}.onnx"
        if source.name not in seen and precision == "int8":
            yield _files(debug_run, _float_form(debug_run, runtime.recipe), source, precision)
        if precision in HALVES and runtime.name in ON_GPU and precision not in seen:
            seen.add(precision)
            yield _half(debug_run, precision)
        seen.add(source.name)
        yield _target(debug_run, name, runtime, debug_run.source(source, precision))


def _from_torch(debug_run: _DebugRun) -> dict[str, Any]:
    from stages.debugging.torch_layers import layer_values, pair_with_modules

    network, _ = load_network(
        debug_run.folders["distill" if debug_run.options.model == "student" else "train"]
    )
    graph = read_graph(debug_run.exported)
    feeds = debug_run.feeds()
    known, takes = layer_values(network, debug_run.images, debug_run.card)
    tolerance = debug_run.tolerance("fp32")
    finding = bisect(
        graph,
        pair_with_modules(graph, network, known, takes),
        lambda names: {name: known[name] for name in names if name in known},
        lambda names: values_of(graph, names, feeds),
        tolerance=tolerance,
        batch=len(debug_run.images),
    )
    case = Case(
        title=f"PyTorch -> {debug_run.exported.name}",
        finding=finding,
        graph=graph,
        reference_graph=None,
        suspect=lambda names: values_of(graph, names, feeds),
        reference=lambda names: {name: known[name] for name in names},
        tolerance=tolerance,
    )
    return conclude(case, debug_run.output / "torch")


def _float_form(debug_run: _DebugRun, recipe: str | None) -> Path:
    """Return the float file of an INT8 file: the exported one, or the one of the fine-tuned student."""
    tuned = debug_run.folders["quantize"] / f"{debug_run.options.model}.tuned.{recipe}.onnx"
    return tuned if tuned.is_file() else debug_run.exported


def _files(debug_run: _DebugRun, reference: Path, suspect: Path, precision: str) -> dict[str, Any]:
    return compare_graphs(
        f"{reference.name} -> {suspect.name}",
        read_graph(suspect),
        debug_run.feeds(),
        read_graph(reference),
        debug_run.feeds(),
        debug_run.tolerance(precision),
        debug_run.output / suspect.stem,
    )


def _half(debug_run: _DebugRun, precision: str) -> dict[str, Any]:
    """Compare the 16-bit form, which exists only during a build, with the float file.

    The form is converted again and computed with explicit roundings, which ONNX Runtime would drop on a CPU.
    """
    from stages.runtimes.half.converting import convert_to_half
    from stages.runtimes.half.proof import as_computed

    float_graph = read_graph(debug_run.exported)
    source = debug_run.source(debug_run.exported, precision)
    half, _ = convert_to_half(float_graph.model, source, debug_run.images, debug_run.keep_float)
    return compare_graphs(
        f"{debug_run.exported.name} -> its {precision} form",
        read_graph(as_computed(half)),
        debug_run.feeds(),
        float_graph,
        debug_run.feeds(),
        debug_run.tolerance(precision),
        debug_run.output / precision,
    )


def _target(debug_run: _DebugRun, name: str, runtime: Runtime, source: Source) -> dict[str, Any]:
    title = f"{source.onnx.name} -> {name}"
    row = _row(debug_run, name)
    ability = runtime.ability_to_run()
    if not row["built"]:
        return skipped(title, f"not built: {row['why_not']}")
    if not ability.can:
        return skipped(title, f"cannot run here: {ability.why_not}")
    folder = debug_run.folders["build"] / row["folder"]
    tolerance = debug_run.tolerance(source.precision)
    try:
        logits = runtime.load(folder, source, 1).logits(debug_run.images)
    except StageError as error:
        return skipped(title, f"{error.what}: {error.why}")
    shipped = compare(logits, source_logits(source.onnx, source, debug_run.images))
    step = _layers(debug_run, title, name, runtime, source, folder, tolerance)
    relative = None if shipped.relative == float("inf") else float(f"{shipped.relative:.4g}")
    step |= {"shipped_relative": relative, "shipped_top1_agreement": 100.0 * shipped.top1_agreement}
    if shipped.relative > tolerance and step["healthy"]:
        step |= {
            "status": "diverges",
            "healthy": False,
            "why": "the shipped target gives other logits, but none of its layers differs when compared "
            "separately: an optimisation of its runtime causes the difference, not a layer",
        }
    return step


def _layers(
    debug_run: _DebugRun,
    title: str,
    name: str,
    runtime: Runtime,
    source: Source,
    folder: Path,
    tolerance: float,
) -> dict[str, Any]:
    graph, feeds = read_graph(source.onnx), debug_run.feeds()
    output = debug_run.output / name
    if runtime.name == "onnxruntime":
        built = read_graph(next(folder.glob("*.onnx")))
        return compare_graphs(title, built, feeds, graph, feeds, tolerance, output)
    if runtime.name == "openvino":
        return conclude(_openvino_case(title, graph, feeds, folder, tolerance, source.precision), output)
    return {
        **skipped(
            title, f"{runtime.name} gives no access to the values of its layers: only logits were compared"
        ),
        "status": "healthy",
        "tolerance": tolerance,
    }


def _openvino_case(
    title: str, graph: Graph, feeds: Mapping[str, np.ndarray], folder: Path, tolerance: float, precision: str
) -> Case:
    from stages.debugging.openvino_layers import target_values, value_names

    file = next(folder.glob("*.xml"))
    present = value_names(file)

    def suspect(names: Sequence[str]) -> dict[str, np.ndarray]:
        computed_names = [name for name in names if name not in feeds]
        computed = target_values(file, computed_names, feeds[INPUT], bf16=precision == "bf16")
        return {**feeds, **computed}

    return Case(
        title=title,
        finding=bisect(
            graph,
            {name: (name,) for name in graph.values if name in present},
            lambda names: values_of(graph, names, feeds),
            suspect,
            tolerance=tolerance,
            batch=len(feeds[INPUT]),
        ),
        graph=graph,
        reference_graph=graph,
        suspect=suspect,
        reference=lambda names: values_of(graph, names, feeds),
        tolerance=tolerance,
    )


def _row(debug_run: _DebugRun, name: str) -> dict[str, Any]:
    listing = json.loads((debug_run.folders["build"] / "build.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = next(
        row for row in listing["targets"] if (row["model"], row["target"]) == (debug_run.options.model, name)
    )
    return row
