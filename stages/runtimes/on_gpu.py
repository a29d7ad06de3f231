"""What a session on a GPU offers besides `timed`. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Phases:
    """One inference by the GPU's own clock: the times between CUDA events on its stream, in milliseconds."""

    to_gpu_ms: float
    inference_ms: float
    from_gpu_ms: float


@dataclass(frozen=True)
class GpuTiming:
    """How one inference is timed.

    Attributes:
        call: one inference, until its stream has done all of it, with the copies that were asked for.
        phases: one inference with both copies, measured on the GPU.
    """

    call: Callable[[], None]
    phases: Callable[[], Phases]


@runtime_checkable
class GpuSession(Protocol):
    """A loaded target on a GPU."""

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        """Return a call like `Session.timed`; the session's facts record what was asked for.

        Args:
            images: uint8 (n, H, W, C).
            cuda_graph: launch the inference as one captured graph; the copies are not part of it.
            transfers: let the call copy the images to the GPU and the outputs back; without, it runs on
                images that are on the GPU and leaves the outputs there.

        Raises:
            StageError: the inference cannot be captured.
        """
