"""Every conversion of one network of the line, each beside the step before it, on real test images.

PyTorch -> the exported ONNX file -> its fp16, bf16 or INT8 form -> the built target. What a target computes
is told of the very file that ships; layer by layer where its runtime lets its values be seen (ONNX
Runtime, OpenVINO), else by its logits alone.
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
from stages.debugging.minimal import Case
from stages.debugging.pair import compare_graphs
from stages.debugging.reporting import conclude, skipped
from stages.models.card import load as load_network
from stages.onnx_files.graphs import Graph, read_graph, values_of
from stages.onnx_files.metadata import INPUT, feed, image_shape
from stages.runtimes import registry
from stages.runtimes.base import Runtime, Source
from stages.runtimes.half.kinds import HALVES
from stages.runtimes.identity import ON_GPU
from stages.runtimes.parity import compare, source_logits

TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.15, "int8": 0.5}
"""By precision, where --tolerance says nothing: root mean square of a layer's differences over the spread of
its values. A healthy INT8 student comes to 0.05 to 0.3 in its last layers."""

BASELINE = "onnxruntime-fp32"


@dataclass(frozen=True)
class Asked:
    """What `kdpipe debug` was asked: target None means all of the profile's."""

    model: Literal["student", "teacher"]
    target: str | None
    tolerance: float | None
    images: int


@dataclass(frozen=True)
class _Line:
    folders: Mapping[str, Path]
    asked: Asked
    card: dict[str, Any]
    images: np.ndarray
    output: Path
    keep_float: Sequence[str]

    @property
    def exported(self) -> Path:
        return self.folders["export"] / f"{self.asked.model}.onnx"

    def tolerance(self, precision: str) -> float:
        return TOLERANCES[precision] if self.asked.tolerance is None else self.asked.tolerance

    def feeds(self) -> dict[str, np.ndarray]:
        return {INPUT: feed(self.images, self.card)}

    def source(self, file: Path, precision: str) -> Source:
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
    asking: Mapping[str, Any],
    output: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The JSON-ready result; a minimal model in a folder of `output` for every step that diverges.

    settings: with `build`, `data` and `targets`. folders: of the artefacts of train, distill, export,
    quantize and build. asking: the fields of Asked. Raises UsageError for a target that the profile does
    not have.
    """
    asked = Asked(**asking)
    targets = _targets(settings, asked)
    test = load_data(settings.data).test
    chosen = np.linspace(0, len(test.labels) - 1, min(asked.images, len(test.labels))).astype(np.int64)
    card = json.loads((folders["export"] / f"{asked.model}.json").read_text(encoding="utf-8"))
    line = _Line(folders, asked, card, test.images.batch(chosen), output, settings.build.keep_float)
    steps = []
    for done, step in enumerate(_steps(line, targets)):
        progress.update(done + 1, done + 1, "steps", step=step["step"])
        steps.append(step)
    return {"healthy": all(step["healthy"] for step in steps), "images": len(chosen), "steps": steps}


def _targets(settings: SimpleNamespace, asked: Asked) -> list[str]:
    if asked.model == "teacher":
        names = [BASELINE]
    else:
        names = [target.name for target in settings.targets]
    if asked.target is None:
        return names
    if asked.target not in names:
        raise UsageError(
            f"The {asked.model} has no target {asked.target}",
            where="kdpipe debug --target",
            why=f"its targets are {', '.join(names)}",
            hint="name one of them, or add it to the profile's targets",
        )
    return [asked.target]


def _steps(line: _Line, targets: list[str]) -> Iterator[dict[str, Any]]:
    yield _from_torch(line)
    seen: set[str] = set()
    for name in targets:
        runtime = registry.check_target(name)
        precision = registry.target_parts(name)[1]
        source = line.exported
        if precision == "int8":
            source = line.folders["quantize"] / f"{line.asked.model}.int8.{runtime.recipe}.onnx"
        if source.name not in seen and precision == "int8":
            yield _files(line, _float_form(line, runtime.recipe), source, precision)
        if precision in HALVES and runtime.name in ON_GPU and precision not in seen:
            seen.add(precision)
            yield _half(line, precision)
        seen.add(source.name)
        yield _target(line, name, runtime, line.source(source, precision))


def _from_torch(line: _Line) -> dict[str, Any]:
    from stages.debugging.torch_layers import layer_values, pair_with_modules

    network, _ = load_network(line.folders["distill" if line.asked.model == "student" else "train"])
    graph = read_graph(line.exported)
    feeds = line.feeds()
    known, takes = layer_values(network, line.images, line.card)
    tolerance = line.tolerance("fp32")
    finding = bisect(
        graph,
        pair_with_modules(graph, network, known, takes),
        lambda names: {name: known[name] for name in names if name in known},
        lambda names: values_of(graph, names, feeds),
        tolerance=tolerance,
        batch=len(line.images),
    )
    case = Case(
        title=f"PyTorch -> {line.exported.name}",
        finding=finding,
        graph=graph,
        reference_graph=None,
        suspect=lambda names: values_of(graph, names, feeds),
        reference=lambda names: {name: known[name] for name in names},
        tolerance=tolerance,
    )
    return conclude(case, line.output / "torch")


def _float_form(line: _Line, recipe: str | None) -> Path:
    """What an INT8 file was made from: the exported file, or the student fine-tuned under its rounding."""
    tuned = line.folders["quantize"] / f"{line.asked.model}.tuned.{recipe}.onnx"
    return tuned if tuned.is_file() else line.exported


def _files(line: _Line, reference: Path, suspect: Path, precision: str) -> dict[str, Any]:
    return compare_graphs(
        f"{reference.name} -> {suspect.name}",
        read_graph(suspect),
        line.feeds(),
        read_graph(reference),
        line.feeds(),
        line.tolerance(precision),
        line.output / suspect.stem,
    )


def _half(line: _Line, precision: str) -> dict[str, Any]:
    """The 16-bit form is made while a target is built and not kept: it is made again, as it is, and
    looked at with every rounding written out, which ONNX Runtime would leave out on a CPU."""
    from stages.runtimes.half.converting import convert_to_half
    from stages.runtimes.half.proof import as_computed

    whole = read_graph(line.exported)
    source = line.source(line.exported, precision)
    half, _ = convert_to_half(whole.model, source, line.images, line.keep_float)
    return compare_graphs(
        f"{line.exported.name} -> its {precision} form",
        read_graph(as_computed(half)),
        line.feeds(),
        whole,
        line.feeds(),
        line.tolerance(precision),
        line.output / precision,
    )


def _target(line: _Line, name: str, runtime: Runtime, source: Source) -> dict[str, Any]:
    title = f"{source.onnx.name} -> {name}"
    row = _row(line, name)
    ability = runtime.ability_to_run()
    if not row["built"]:
        return skipped(title, f"not built: {row['why_not']}")
    if not ability.can:
        return skipped(title, f"cannot run here: {ability.why_not}")
    folder = line.folders["build"] / row["folder"]
    tolerance = line.tolerance(source.precision)
    try:
        found = runtime.load(folder, source, 1).logits(line.images)
    except StageError as error:
        return skipped(title, f"{error.what}: {error.why}")
    shipped = compare(found, source_logits(source.onnx, source, line.images))
    step = _layers(line, title, name, runtime, source, folder, tolerance)
    told = None if shipped.relative == float("inf") else float(f"{shipped.relative:.4g}")
    step |= {"shipped_relative": told, "shipped_top1_agreement": 100.0 * shipped.top1_agreement}
    if shipped.relative > tolerance and step["healthy"]:
        step |= {
            "status": "diverges",
            "healthy": False,
            "why": "the target as it ships gives other logits, but no layer of it does when looked at by "
            "itself: an optimisation of its runtime is at fault, not a layer",
        }
    return step


def _layers(
    line: _Line, title: str, name: str, runtime: Runtime, source: Source, folder: Path, tolerance: float
) -> dict[str, Any]:
    graph, feeds = read_graph(source.onnx), line.feeds()
    output = line.output / name
    if runtime.name == "onnxruntime":
        built = read_graph(next(folder.glob("*.onnx")))
        return compare_graphs(title, built, feeds, graph, feeds, tolerance, output)
    if runtime.name == "openvino":
        return conclude(_openvino_case(title, graph, feeds, folder, tolerance, source.precision), output)
    return {
        **skipped(title, f"{runtime.name} does not let the values of its layers be seen: logits alone"),
        "status": "healthy",
        "tolerance": tolerance,
    }


def _openvino_case(
    title: str, graph: Graph, feeds: Mapping[str, np.ndarray], folder: Path, tolerance: float, precision: str
) -> Case:
    from stages.debugging.openvino_layers import target_values, value_names

    file = next(folder.glob("*.xml"))
    named = value_names(file)

    def suspect(names: Sequence[str]) -> dict[str, np.ndarray]:
        wanted = [name for name in names if name not in feeds]
        computed = target_values(file, wanted, feeds[INPUT], bf16=precision == "bf16")
        return {**feeds, **computed}

    return Case(
        title=title,
        finding=bisect(
            graph,
            {name: (name,) for name in graph.values if name in named},
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


def _row(line: _Line, name: str) -> dict[str, Any]:
    listing = json.loads((line.folders["build"] / "build.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = next(
        row for row in listing["targets"] if (row["model"], row["target"]) == (line.asked.model, name)
    )
    return row
