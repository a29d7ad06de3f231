"""Sessions of ONNX Runtime: opened on exactly the provider asked for, and run on the CPU.

Light: it needs numpy and ONNX Runtime only, because the program that works on devices carries it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.errors import StageError
from stages.onnx_files.session_options import CPU, may_spin, session_options
from stages.runtimes.base import Source
from stages.runtimes.images import as_input

PRECISION_KEY = "kdpipe.effective_precision"
"""The key of the file's metadata that holds it, so that nobody has to search the loaded graph."""


class OnnxRuntimeSession:
    """One loaded file, on the CPU, with exactly `threads` threads.

    Attributes:
        facts: `effective_precision`, `provider`, `threads`, `spinning` (whether waiting threads spin).
    """

    def __init__(self, file: Path, source: Source, threads: int) -> None:
        self._session = open_on_provider(
            file,
            session_options(threads=threads),
            [(CPU, {})],
            hint="pip install --force-reinstall onnxruntime",
        )
        self._source = source
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts: dict[str, Any] = {
            "effective_precision": metadata.get(PRECISION_KEY, source.precision),
            "provider": self._session.get_providers()[0],
            "threads": threads,
            "spinning": may_spin(threads),
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        result: np.ndarray = self._session.run(["logits"], {self._input: as_input(images, self._source)})[0]
        return result

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs these images, inputs and outputs bound."""
        binding = self._session.io_binding()
        # The array stays referenced by the closure: the binding holds its bare address.
        bound = as_input(images, self._source)
        binding.bind_cpu_input(self._input, bound)
        for output in self._outputs:
            binding.bind_output(output, "cpu")
        run = self._session.run_with_iobinding

        def call(bound: np.ndarray = bound) -> None:  # noqa: ARG001 - keeps the array alive
            run(binding)

        return call


def open_on_provider(
    file: Path,
    options: onnxruntime.SessionOptions,
    providers: Sequence[tuple[str, dict[str, str]]],
    *,
    hint: str,
    reason: Callable[[], str] = str,
) -> onnxruntime.InferenceSession:
    """Open a session whose first provider is the first of these.

    ONNX Runtime goes on without a provider that it does not have or cannot load, and writes that at most to
    its log.

    Args:
        file: the ONNX file.
        options: see `stages.onnx_files.session_options`.
        providers: names with their options, the preferred one first.
        hint: the command that helps where the provider is missing.
        reason: called then; why it is missing, or "".

    Raises:
        StageError: ONNX Runtime refuses the file, or chose another provider.
    """
    expected = providers[0][0]
    known = onnxruntime.get_available_providers()
    present = [provider for provider in providers if provider[0] in known]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=present, enable_fallback=0)
    except Exception as error:  # the binding raises a class of its own for each status code
        raise StageError(
            "ONNX Runtime cannot load a built target",
            where=file.name,
            why=str(error).replace(str(file), file.name),
            hint="kdpipe build PROFILE",
        ) from error
    chosen = session.get_providers()[0]
    if chosen != expected:
        raise StageError(
            "ONNX Runtime chose another provider than the one asked for",
            where=file.name,
            why=f"found {chosen}, expected {expected}" + (f": {why}" if (why := reason()) else ""),
            hint=hint,
        )
    return session
