"""What every target that is loaded on a device offers, and how it is fed and sampled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pipeline.heartbeat import Beats
from stages.measuring import latency
from stages.measuring.contention import Watch

SAMPLING = ("warmup_s", "warmup_max_s", "duration_s", "max_duration_s", "min_samples")


class Unavailable(Exception):  # noqa: N818 - reads as the sentence it is
    """The target cannot run on this device; the text says why."""


class Session(Protocol):
    facts: dict[str, Any]
    clock: str

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float | None]:
        """Latencies of one inference on these images, and that of the first call (ms)."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, C) -> float32 (n, classes)."""


def sample_calls(
    call: Callable[[], None], settings: dict[str, Any], watch: Watch, beats: Beats
) -> tuple[latency.Samples, float]:
    """The samples, and the latency of the very first call in milliseconds."""
    beats.phase("the first inference")
    before = time.perf_counter()
    call()
    first_ms = round((time.perf_counter() - before) * 1e3, 3)
    asked = {name: settings[name] for name in SAMPLING}
    beats.phase("warm-up", settings["warmup_max_s"], "s")
    samples = latency.sample(
        call,
        watch=watch,
        between=lambda: beats.phase("sampling", settings["duration_s"], "s"),
        warming=beats.step,
        sampling=beats.step,
        **asked,
    )
    return samples, first_ms


def as_input(images: np.ndarray, job: dict[str, Any]) -> np.ndarray:
    """The images as the file takes them: uint8 NHWC, or for a plain graph normalised float32 NCHW."""
    if job["input"] == "uint8_nhwc":
        return np.require(images, requirements=("C", "W"))
    mean, std = np.asarray(job["mean"], np.float32), np.asarray(job["std"], np.float32)
    scaled = (images.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
