"""Images and outputs bound for a session on a GPU, with PyTorch's CUDA tensors as buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stages.runtimes.on_gpu import GpuTiming, Phases

_CUDA: Any = torch.cuda
"""PyTorch's types leave the constructors of streams and events out."""


@dataclass(frozen=True)
class Bound:
    """Images and outputs in page-locked memory and on the GPU.

    Attributes:
        host: the images in page-locked memory.
        device: the images on the GPU.
        outputs: by name, on the GPU.
        results: by name, the outputs in page-locked memory.
        run: puts one inference on the stream.
    """

    host: torch.Tensor
    device: torch.Tensor
    outputs: dict[str, torch.Tensor]
    results: dict[str, torch.Tensor]
    run: Callable[[], None]

    def upload(self) -> None:
        """Put the copy of the images to the GPU on the stream."""
        self.device.copy_(self.host, non_blocking=True)

    def download(self) -> None:
        """Put the copies of the outputs to the host on the stream."""
        for name, tensor in self.outputs.items():
            self.results[name].copy_(tensor, non_blocking=True)


def new_stream() -> torch.cuda.Stream:
    """Return a new stream of the current GPU."""
    stream: torch.cuda.Stream = _CUDA.Stream()
    return stream


def page_locked_like(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Allocate page-locked memory in the host of the shapes and types of these tensors."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        for name, tensor in outputs.items()
    }


def timing(bound: Bound, run: Callable[[], None], stream: torch.cuda.Stream, *, transfers: bool) -> GpuTiming:
    """Return the call and the phases of a bound inference.

    Args:
        bound: images and outputs.
        run: one inference on the stream: the binding's own, or its captured form.
        stream: of the session.
        transfers: whether the call copies images and outputs.
    """
    return GpuTiming(call_of(bound, run, stream, transfers=transfers), _phases(bound, run, stream))


def call_of(
    bound: Bound, run: Callable[[], None], stream: torch.cuda.Stream, *, transfers: bool
) -> Callable[[], None]:
    """Return a call of one inference that ends when the stream has done all of it; see `timing`."""

    def call() -> None:
        with torch.cuda.stream(stream):
            if transfers:
                bound.upload()
            run()
            if transfers:
                bound.download()
        stream.synchronize()

    return call


def _phases(bound: Bound, run: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], Phases]:
    marks = [_CUDA.Event(enable_timing=True) for _ in range(4)]

    def phases() -> Phases:
        with torch.cuda.stream(stream):
            marks[0].record(stream)
            bound.upload()
            marks[1].record(stream)
            run()
            marks[2].record(stream)
            bound.download()
            marks[3].record(stream)
        stream.synchronize()
        return Phases(*(marks[i].elapsed_time(marks[i + 1]) for i in range(3)))

    return phases
