"""What a session on a GPU offers besides `timed`. Light: standard library alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Phases:
    """One inference by the GPU's own clock, in milliseconds: between CUDA events on its stream."""

    to_gpu_ms: float
    inference_ms: float
    from_gpu_ms: float


@dataclass(frozen=True)
class GpuTiming:
    """call: one inference, until its stream has done all of it; what it covers was asked for.
    phases: one inference with both copies, measured on the GPU."""

    call: Callable[[], None]
    phases: Callable[[], Phases]


@runtime_checkable
class GpuSession(Protocol):
    """A loaded target on a GPU."""

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        """As `Session.timed`, and the session's facts say what was asked for.

        cuda_graph: the inference is launched as one captured graph; the copies are not part of it.
        transfers: the call copies the images to the GPU and the outputs back; without, it runs on
            images that lie there and leaves the outputs there.
        Raises StageError if the inference cannot be captured.
        """
