"""What every target that is loaded on a device offers, and how its latency is sampled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pipeline.heartbeat import Beats
from stages.measuring import latency
from stages.measuring.contention import Watch

SAMPLING_SETTINGS = ("warmup_s", "warmup_max_s", "duration_s", "max_duration_s", "min_samples")
"""Those of the `measure` section that `latency.sample` takes."""


class Unavailable(Exception):  # noqa: N818 - not an error of the program: the target's row gets the reason
    """The target cannot run on this device; the text gives the reason."""


class DeviceSession(Protocol):
    """A target loaded on this device.

    Attributes:
        facts: what is in force, JSON-ready: `version`, `threads` and more.
        clock: what measures the latencies.
    """

    facts: dict[str, Any]
    clock: str

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float | None]:
        """Sample the latency of one inference.

        Args:
            images: uint8 (batch, H, W, C).
            settings: the profile's `measure` section.
            watch: reads what else uses the cores meanwhile.
            beats: reports the progress.

        Returns:
            The samples, and the latency of the very first call in milliseconds (None: not measured).
        """

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""


def sample_calls(
    call: Callable[[], None], settings: dict[str, Any], watch: Watch, beats: Beats
) -> tuple[latency.Samples, float]:
    """Sample the latency of `call`; see `DeviceSession.sample`."""
    beats.phase("the first inference")
    before = time.perf_counter()
    call()
    first_ms = round((time.perf_counter() - before) * 1e3, 3)
    beats.phase("warm-up", settings["warmup_max_s"], "s")
    samples = latency.sample(
        call,
        watch=watch,
        between=lambda: beats.phase("sampling", settings["duration_s"], "s"),
        warming=beats.step,
        sampling=beats.step,
        **{name: settings[name] for name in SAMPLING_SETTINGS},
    )
    return samples, first_ms
