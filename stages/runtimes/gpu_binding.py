"""Images and outputs bound for a session on a GPU, with PyTorch's CUDA tensors as buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.runtimes.on_gpu import GpuTiming, Phases


@dataclass(frozen=True)
class Bound:
    """Images and outputs in page-locked memory and on the GPU; `run` puts one inference on the stream."""

    host: torch.Tensor
    device: torch.Tensor
    outputs: dict[str, torch.Tensor]
    results: dict[str, torch.Tensor]
    run: Callable[[], None]

    def upload(self) -> None:
        self.device.copy_(self.host, non_blocking=True)

    def download(self) -> None:
        for name, tensor in self.outputs.items():
            self.results[name].copy_(tensor, non_blocking=True)


def page_locked_like(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Room in the host's memory for what these tensors on the GPU hold."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        for name, tensor in outputs.items()
    }


def timing(bound: Bound, run: Callable[[], None], stream: torch.cuda.Stream, *, transfers: bool) -> GpuTiming:
    """run: one inference on the stream, of the binding itself or its captured form."""
    return GpuTiming(call_of(bound, run, stream, transfers=transfers), _phases(bound, run, stream))


def call_of(
    bound: Bound, run: Callable[[], None], stream: torch.cuda.Stream, *, transfers: bool
) -> Callable[[], None]:
    """One inference, until the stream has done all of it."""

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
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]

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
