"""Builds one engine, in a process of its own: a crash of the SDK takes nothing else down.

    python -m stages.runtimes.tensorrt_build

The first line of standard input is the specification (JSON), the rest the ONNX file. Tells on
standard output, one JSON object a line: `progress` (phase, step, steps), `note`, and in the end
`done` (facts) or `fault` (what, why). Works with `tensorrt` 10.12 to 11 and with `tensorrt_rtx`: it always
builds strongly typed and uses only calls that all of them have.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError


@dataclass(frozen=True)
class Specification:
    """package: what to import. engine: the file to write. timings: a file of timings to start from and
    to write, or "". batches: smallest, tuned for, largest. device: whether a GPU is there."""

    package: str
    engine: str
    timings: str
    batches: tuple[int, int, int]
    workspace_mb: int
    optimization_level: int
    device: bool


def main() -> int:
    # The SDK may print: what it prints must not get between the lines of the protocol.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more

    head = json.loads(sys.stdin.buffer.readline())
    onnx = sys.stdin.buffer.read()
    try:
        facts = build(Specification(**{**head, "batches": tuple(head["batches"])}), onnx, tell)
    except StageError as error:
        tell(fault=error.as_json())
        return 0
    tell(done=facts)
    return 0


def build(specification: Specification, onnx: bytes, tell: Any) -> dict[str, Any]:
    """Writes the engine; returns what the sidecar says of it.

    Raises StageError with the parser's or the builder's own messages.
    """
    trt = importlib.import_module(specification.package)
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise _parser_error(parser, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, specification.workspace_mb * 2**20)
    config.builder_optimization_level = specification.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt, tell)
    profile = _profile(builder, network, specification.batches)
    config.add_optimization_profile(profile["object"])
    cache_used = _start_from_timings(config, specification, tell)

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise StageError(
            "TensorRT built no engine",
            why=log.errors() or "it gave no reason",
            mend="more scratch memory may help: --set build.workspace_mb=4096",
        )
    blob = bytes(memoryview(engine))
    Path(specification.engine).write_bytes(blob)
    if specification.timings:
        cache = config.get_timing_cache()
        if cache is not None:
            Path(specification.timings).write_bytes(bytes(memoryview(cache.serialize())))
    return {
        "version": trt.__version__,
        "system": platform.system().lower(),
        "architecture": platform.machine(),
        "strongly_typed": True,
        "profile": profile["shapes"],
        "tensors": _tensors(network),
        "network_layers": network.num_layers,
        "timings_reused": cache_used,
        "warnings": log.warnings(),
        "engine_layers": _inspect(trt, log, blob) if specification.device else None,
    }


def _network_flags(trt: Any) -> int:
    """Strong typing has to be asked for before 11 and is the only kind from then on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any) -> Any:
    """TensorRT reports failure by returning None and writing to the logger: so all of it is kept."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.kept.append((int(severity), message))

        def errors(self) -> str:
            worst = int(trt.ILogger.Severity.ERROR)
            return "\n".join(message for severity, message in self.kept if severity <= worst)

        def warnings(self) -> list[str]:
            known = int(trt.ILogger.Severity.WARNING)
            lines = [message for severity, message in self.kept if severity == known]
            return list(dict.fromkeys(lines))[:20]

    return Log()


def _monitor(trt: Any, tell: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            tell(progress=[phase, step + 1, self.steps.get(phase, step + 1)])
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _parser_error(parser: Any, log: Any) -> StageError:
    """All that the parser has to say, one line for each refused node."""
    lines = []
    unsupported = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        description = " ".join(error.desc().split())
        operator, node, code = error.node_operator(), error.node_name(), str(error.code()).rpartition(".")[2]
        if "plugin not found" in description.lower() or code == "UNSUPPORTED_NODE":
            description = f"operator {operator} unsupported"
            unsupported.append(operator)
        place = f" at node {node or '(unnamed)'} ({operator})" if operator else ""
        lines.append(f"{code}{place}: {description}")
    mend = "choose a student without such operators, or leave this target out"
    if not unsupported:
        mend = "export again with another operator set (--set export.opset=20), or leave this target out"
    return StageError(
        "TensorRT refuses the file", why="\n".join(lines) or log.errors() or "it gave no reason", mend=mend
    )


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> dict[str, Any]:
    """The optimisation profile of every input: all but the batch dimension are fixed."""
    profile = builder.create_optimization_profile()
    shapes: dict[str, Any] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        fixed = tuple(tensor.shape)[1:]
        if any(size < 0 for size in fixed):
            raise StageError(
                "the file leaves the size of images open",
                where=f"input {tensor.name}",
                why=f"found shape {tuple(tensor.shape)}, expected one open dimension, the batch",
                mend="kdpipe export PROFILE",
            )
        three = [(batch, *fixed) for batch in batches]
        profile.set_shape(tensor.name, *three)
        shapes[tensor.name] = dict(zip(("min", "opt", "max"), map(list, three), strict=True))
    return {"object": profile, "shapes": shapes}


def _start_from_timings(config: Any, specification: Specification, tell: Any) -> bool:
    """Whether earlier timings were taken over; the SDK refuses those of another device or version."""
    if not specification.timings:
        return False
    file = Path(specification.timings)
    known = file.read_bytes() if file.exists() else b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for blob in (known, b"") if known else (b"",):
            cache = config.create_timing_cache(blob)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                return bool(blob)
            if blob:
                tell(note="the kept timings are of another GPU or TensorRT version: timing anew")
    return False


def _tensors(network: Any) -> list[dict[str, Any]]:
    inputs = [("input", network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [("output", network.get_output(index)) for index in range(network.num_outputs)]
    return [
        {
            "name": tensor.name,
            "mode": mode,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).rpartition(".")[2].lower(),
        }
        for mode, tensor in (*inputs, *outputs)
    ]


def _inspect(trt: Any, log: Any, blob: bytes) -> dict[str, Any] | None:
    """What the engine inspector tells of the built engine; only a machine with a GPU can ask it."""
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return summary(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def summary(text: str) -> dict[str, Any]:
    """Layers of an engine by the type of their outputs, from the inspector's JSON.

    The field was `Format/Datatype` until TensorRT 10 and is split in 11.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except ValueError:
        return {"layers": 0, "by_type": {}}
    by_type: dict[str, int] = {}
    for layer in layers:
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        for output in outputs[:1]:
            told = str(
                output.get("DataType") or output.get("Datatype") or output.get("Format/Datatype") or ""
            )
            kind = _type_of(told)
            by_type[kind] = by_type.get(kind, 0) + 1
    return {"layers": len(layers), "by_type": dict(sorted(by_type.items()))}


def _type_of(told: str) -> str:
    lower = told.lower()
    for word, name in (
        ("int8", "int8"), ("bf16", "bf16"), ("bfloat", "bf16"), ("fp16", "fp16"), ("half", "fp16"),
        ("fp32", "fp32"), ("float", "fp32"), ("int32", "int32"), ("int64", "int64"), ("bool", "bool"),
    ):  # fmt: skip
        if word in lower:
            return name
    return "other"


if __name__ == "__main__":
    sys.exit(main())
