"""Opens ONNX Runtime's sessions, on the provider asked for or not at all, and runs them on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.errors import StageError
from pipeline.machine import usable_cores
from stages.runtimes.base import Source
from stages.runtimes.images import as_input

CPU = "CPUExecutionProvider"
PRECISION_KEY = "kdpipe.effective_precision"
"""In the file's metadata, so that a loaded file tells it without being searched."""


class OnnxRuntimeSession:
    """One loaded file, on the CPU, with exactly `threads` threads."""

    def __init__(self, file: Path, source: Source, threads: int) -> None:
        # A spinning pool with more threads than cores only takes them from itself.
        spinning = threads <= usable_cores()
        options = session_options(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        self._session = open_session(
            file, options, [(CPU, {})], hint="pip install --force-reinstall onnxruntime"
        )
        self._source = source
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts: dict[str, Any] = {
            "effective_precision": metadata.get(PRECISION_KEY, source.precision),
            "provider": self._session.get_providers()[0],
            "threads": threads,
            "spinning": spinning,
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        result: np.ndarray = self._session.run(["logits"], {self._input: as_input(images, self._source)})[0]
        return result

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        binding = self._session.io_binding()
        # The array stays referenced by the closure: the binding holds its bare address.
        bound = as_input(images, self._source)
        binding.bind_cpu_input(self._input, bound)
        for output in self._outputs:
            binding.bind_output(output, "cpu")
        run = self._session.run_with_iobinding

        def call(bound: np.ndarray = bound) -> None:
            run(binding)

        return call


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """One inference at a time, every optimisation, errors alone in the log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def open_session(
    file: Path,
    options: onnxruntime.SessionOptions,
    providers: Sequence[tuple[str, dict[str, str]]],
    *,
    hint: str,
    because: Callable[[], str] = str,
) -> onnxruntime.InferenceSession:
    """A session whose first provider is the first of these.

    ONNX Runtime goes on without a provider that it does not have or cannot load, and says so at most in
    its log; here that is a StageError. because: asked then for the reason; hint: the command that helps.
    """
    wanted = providers[0][0]
    known = onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[one for one in providers if one[0] in known], enable_fallback=0
        )
    except Exception as error:  # the binding raises a class of its own for each status code
        raise StageError(
            "ONNX Runtime cannot load a built target",
            where=file.name,
            why=str(error).replace(str(file), file.name),
            hint="kdpipe build PROFILE",
        ) from error
    found = session.get_providers()[0]
    if found != wanted:
        raise StageError(
            "ONNX Runtime chose another provider than the one asked for",
            where=file.name,
            why=f"found {found}, expected {wanted}" + (f": {reason}" if (reason := because()) else ""),
            hint=hint,
        )
    return session
