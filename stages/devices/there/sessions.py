"""A target loaded on the device by the same sessions as in the line, and sampled.

Needs numpy and the target's runtime. TensorRT runs through the CUDA runtime library, without PyTorch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.heartbeat import Beats
from stages.devices.requests import BUILT_THERE, source_of
from stages.devices.there import engines
from stages.devices.there.sampling import DeviceSession, Unavailable, sample_calls
from stages.measuring import latency
from stages.measuring.contention import Watch
from stages.runtimes.base import Session

SESSIONS = {
    "onnxruntime": ("stages.runtimes.onnx_runtime.session", "OnnxRuntimeSession", "*.onnx"),
    "openvino": ("stages.runtimes.openvino.session", "OpenVinoSession", "*.xml"),
}
"""By runtime, the module and the class of its session, and its file's name in the target's folder."""


def load(request: dict[str, Any], folder: Path, threads: int) -> DeviceSession:
    """Load a target.

    Args:
        request: see `stages.devices.requests`.
        folder: where the target's files are.
        threads: CPU threads of one inference.

    Raises:
        Unavailable: the runtime is not installed here, or refuses the file.
    """
    try:
        if request["runtime"] in BUILT_THERE:
            return engines.load(request, folder)
        return RuntimeSession(request, folder, threads)
    except StageError as error:
        raise Unavailable(f"{error.what}: {error.why}") from error


class RuntimeSession:
    """The session of a runtime, with the same binding and feeding as in the line."""

    clock = "time.perf_counter_ns"

    def __init__(self, request: dict[str, Any], folder: Path, threads: int) -> None:
        runtime = request["runtime"]
        if runtime not in SESSIONS:
            raise Unavailable(f"kdpipe cannot run {runtime} on devices")
        module, session, pattern = SESSIONS[runtime]
        try:
            opened = getattr(importlib.import_module(module), session)
        except ImportError as error:
            raise Unavailable(f"{runtime} is not installed on the device ({error})") from None
        self._session: Session = opened(next(folder.glob(pattern)), source_of(request), threads)
        self.facts = {"version": importlib.import_module(runtime).__version__, **self._session.facts}

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float]:
        """See `DeviceSession`."""
        return sample_calls(self._session.timed(images), settings, watch, beats)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `DeviceSession`."""
        return self._session.logits(images)
