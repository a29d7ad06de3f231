"""Builds one engine, in a process of its own: a crash of the SDK takes nothing else down.

    python -m stages.runtimes.tensorrt.build

The first line of standard input is the specification (JSON), the rest the ONNX file. Standard output has one
JSON object a line: `progress` (phase, step, steps, share of the whole), `note`, and in the end `done` (facts)
or `fault` (what, why). Works with `tensorrt` 10.12 to 11 and with `tensorrt_rtx`: it always builds strongly
typed and uses only calls that all of them have. `stages.runtimes.tensorrt.process` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from stages.runtimes.tensorrt import faults as tensorrt_faults
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.runtimes.tensorrt.inspector import summary
from stages.runtimes.tensorrt.messages import Messages
from stages.runtimes.tensorrt.options import Options
from stages.runtimes.tensorrt.phases import Phases

REPORT_EVERY_S = 0.1
"""The shortest time between two reports: there may be thousands of steps a second."""

Report = Callable[..., None]
"""Writes one message to standard output; its fields are passed by keyword."""


@dataclass(frozen=True)
class Specification:
    """One engine to build.

    Attributes:
        package: the module to import.
        engine: the file to write.
        timings: a file of timings to start from and to write, or "".
        batches: smallest, tuned for, largest.
        workspace_mb: scratch memory of the builder, in MiB.
        optimization_level: of the builder.
        device: whether this machine has a GPU.
        options: the builder's flags.
    """

    package: str
    engine: str
    timings: str
    batches: tuple[int, int, int]
    workspace_mb: int
    optimization_level: int
    device: bool
    options: Options = field(default_factory=Options)

    @staticmethod
    def from_json(head: Mapping[str, Any]) -> Specification:
        """Return the specification of a first line."""
        options = {**head["options"], "compute_capabilities": tuple(head["options"]["compute_capabilities"])}
        return Specification(**{**head, "batches": tuple(head["batches"]), "options": Options(**options)})


def main() -> int:
    """Build the engine that standard input specifies; return the exit code."""
    # The SDK may print; that must not mix with the lines of the protocol.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def report(**message: Any) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            os._exit(1)  # the process that reads has ended

    head = json.loads(sys.stdin.buffer.readline())
    onnx = sys.stdin.buffer.read()
    try:
        facts = build(Specification.from_json(head), onnx, report)
    except StageError as error:
        report(fault=error.as_json())
    except Exception as error:  # whatever the SDK's bindings or the import raise
        traceback.print_exc()
        report(fault=tensorrt_faults.raised(error).as_json())
    else:
        report(done=facts)
    return 0


def build(specification: Specification, onnx: bytes, report: Report) -> dict[str, Any]:
    """Build and write an engine.

    Args:
        specification: what to build.
        onnx: the content of the ONNX file.
        report: takes progress and notes.

    Returns:
        The engine's facts, for the sidecar.

    Raises:
        StageError: the parser or the builder refuses the file; with its own messages.
    """
    trt = importlib.import_module(specification.package)
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    if builder is None:
        raise tensorrt_faults.built_nothing(messages.errors())
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(onnx):
        raise tensorrt_faults.refused(parser, messages.errors())
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, specification.workspace_mb * 2**20)
    config.builder_optimization_level = specification.optimization_level
    # It is set unless it is cleared, and would round fp32 to the ten bits of fp16.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt, report)
    tensorrt_options.apply(trt, config, specification.options)
    profile = _profile(builder, network, specification.batches)
    config.add_optimization_profile(profile["object"])
    timings_reused = _load_timings(config, specification, report)

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise tensorrt_faults.built_nothing(messages.errors())
    blob = bytes(memoryview(engine))
    Path(specification.engine).write_bytes(blob)
    _save_timings(config, specification, report)
    return {
        "version": trt.__version__,
        "system": platform.system().lower(),
        "architecture": platform.machine(),
        "strongly_typed": True,
        "profile": profile["shapes"],
        "tensors": _tensors(network),
        "network_layers": network.num_layers,
        "timings_reused": timings_reused,
        "warnings": messages.warnings(),
        "engine_layers": _inspect(trt, messages.logger, blob, profile["shapes"], specification)
        if specification.device
        else None,
    }


def _network_flags(trt: Any) -> int:
    """Return the flags for strong typing: versions before 11 have a flag, later networks are always typed."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _monitor(trt: Any, report: Report) -> Any:
    """Return the monitor that the builder reports its progress to.

    The builder calls it from several threads, and takes an exception of `step_complete` for a request to
    cancel.
    """
    reporter = _Reporter(report)

    def step_complete(_monitor: Any, phase: str, step: int) -> bool:
        reporter.step(phase, step)
        return True

    methods = {
        "__init__": lambda monitor: trt.IProgressMonitor.__init__(monitor),
        "phase_start": lambda _monitor, phase, parent, steps: reporter.start(phase, parent, steps),
        "step_complete": step_complete,
        "phase_finish": lambda _monitor, phase: reporter.finish(phase),
    }
    return type("Monitor", (trt.IProgressMonitor,), methods)()


class _Reporter:
    """Reports the progress of nested phases, at most every `REPORT_EVERY_S`."""

    def __init__(self, report: Report) -> None:
        self._report_message = report
        self._phases = Phases()
        self._reported_at = 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Report that a phase begins."""
        with self._lock:
            self._phases.start(phase, parent, steps)
            self._report(at_once=parent is None)

    def step(self, phase: str, step: int) -> None:
        """Report that a step of a phase is done."""
        with self._lock:
            self._phases.step(phase, step)
            self._report()

    def finish(self, phase: str) -> None:
        """Report that a phase ends."""
        with self._lock:
            self._phases.finish(phase)
            self._report()

    def _report(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            done, steps = self._phases.steps()
            self._report_message(progress=[self._phases.current, done, steps, round(self._phases.share, 4)])


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> dict[str, Any]:
    """Return the optimization profile of every input: all dimensions but the batch are fixed.

    Raise StageError for a file that leaves more open, or fixes another batch than the specified ones.
    """
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
                hint="kdpipe export PROFILE",
            )
        batch = tensor.shape[0]
        if batch >= 0 and set(batches) != {batch}:
            raise StageError(
                f"the file takes only batches of {batch}",
                where=f"input {tensor.name}",
                why=f"found shape {tuple(tensor.shape)}, expected an open batch dimension for batches "
                f"{batches[0]} to {batches[2]}",
                hint="kdpipe export PROFILE; or "
                + " ".join(f"--set build.batch_{word}={batch}" for word in ("min", "opt", "max")),
            )
        min_opt_max = [(batch, *fixed) for batch in batches]
        profile.set_shape(tensor.name, *min_opt_max)
        shapes[tensor.name] = dict(zip(("min", "opt", "max"), map(list, min_opt_max), strict=True))
    return {"object": profile, "shapes": shapes}


def _load_timings(config: Any, specification: Specification, report: Report) -> bool:
    """Start from earlier timings; return whether the SDK took them.

    It refuses timings of another device or version.
    """
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
                report(note="the kept timings are of another GPU or TensorRT version: timing anew")
    return False


def _save_timings(config: Any, specification: Specification, report: Report) -> None:
    """Save the timings for the next build; another build reads either the old file or the new one."""
    cache = config.get_timing_cache() if specification.timings else None
    if cache is None:
        return
    part = Path(f"{specification.timings}.{os.urandom(6).hex()}.part")
    try:
        part.write_bytes(bytes(memoryview(cache.serialize())))
        part.replace(specification.timings)
    except OSError as error:  # the engine matters more than its timings
        report(note=f"the timings cannot be kept: {error}")


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


def _inspect(
    trt: Any, logger: Any, blob: bytes, shapes: dict[str, Any], specification: Specification
) -> dict[str, Any] | None:
    """Return the engine inspector's summary of the built engine; only a machine with a GPU has one."""
    runtime = trt.Runtime(logger)
    if specification.options.version_compatible:
        # Its lean runtime is host code, which the profile agreed to (build.trust_engine_host_code).
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    # With open sizes an engine reports "N/A due to dynamic shapes" instead of formats and types.
    context = engine.create_execution_context()
    if context is not None:
        for name, sizes in shapes.items():
            context.set_input_shape(name, sizes["opt"])
        inspector.execution_context = context
    return summary(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


if __name__ == "__main__":
    sys.exit(main())
