"""What a profile may say of measuring."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stages.fields import Settings, setting


class MeasureSettings(Settings):
    """The latency profile: how long, at which batch sizes and thread counts."""

    batch_sizes: list[int] = setting(lambda: [1], "batch sizes to time", unit="images", min_length=1)
    threads: list[int] = setting(lambda: [1], "CPU thread counts to time", unit="threads", min_length=1)
    warmup_s: float = setting(0.3, "shortest warm-up before the samples count", unit="s", ge=0.0)
    warmup_max_s: float = setting(
        5.0, "longest warm-up: it goes on until latencies are steady", unit="s", gt=0.0
    )
    duration_s: float = setting(2.0, "how long each combination is sampled", unit="s", gt=0.0)
    max_duration_s: float = setting(
        10.0, "how far sampling is drawn out to reach steady state", unit="s", gt=0.0
    )
    min_samples: int = setting(50, "fewest samples of each combination", unit="samples", ge=10)
    resamples: int = setting(2000, "bootstrap resamples of an interval", ge=100)
    pin: bool = setting(True, "bind each measurement to as many of the idlest cores as it has threads")
    compare_s: float = setting(
        2.0, "how long two targets of one runtime are timed in turns, in all; 0: not at all", unit="s", ge=0.0
    )
    compare_rounds: int = setting(20, "turns of each target in a launch of both", unit="rounds", ge=4)
    compare_launches: int = setting(
        2, "how often both are started afresh; a difference must show in each", unit="launches", ge=1
    )
    reference: str | None = setting(
        None,
        "a bundle made earlier (NAME.tar.zst): every target is timed in turns against its namesake there; "
        "`~` and $VARIABLES are expanded",
        min_length=1,
        keyed=False,
    )
    arrival_rates: list[float] = setting(
        list, "rates of scheduled arrivals to time under load, first batch and threads", unit="batches/s"
    )
    arrivals: Literal["poisson", "regular"] = setting(
        "poisson", "gaps between arrivals: at random, as of many users, or equal, as of a camera"
    )
    arrivals_s: float = setting(10.0, "how long batches arrive at each rate", unit="s", gt=0.0)
    cuda_graph: bool = setting(False, "on a GPU, launch the inference as one captured CUDA graph")
    transfers: bool = setting(True, "on a GPU, time the copies of images and outputs as well")
    energy_idle_s: float = setting(
        1.0, "how long the idle baseline is taken where energy can be measured", unit="s", gt=0.0
    )
    accuracy_batch: int = setting(64, "batch size while accuracy is taken", unit="images", ge=1)
    golden_images: int = setting(
        16, "test images kept with their outputs for the bundle's self-test", unit="images", ge=1
    )

    @model_validator(mode="after")
    def _positive(self) -> MeasureSettings:
        if min(self.batch_sizes) < 1 or min(self.threads) < 1:
            raise ValueError("batch_sizes and threads must be at least 1")
        if len(set(self.batch_sizes)) < len(self.batch_sizes) or len(set(self.threads)) < len(self.threads):
            raise ValueError("batch_sizes and threads must not repeat a value")
        if self.max_duration_s < self.duration_s:
            raise ValueError("max_duration_s must be at least duration_s")
        if self.warmup_max_s < self.warmup_s:
            raise ValueError("warmup_max_s must be at least warmup_s")
        if self.reference and not self.compare_s:
            raise ValueError("reference is timed in turns: compare_s must be above 0")
        if any(rate <= 0 for rate in self.arrival_rates):
            raise ValueError("arrival_rates must be above 0")
        if len(set(self.arrival_rates)) < len(self.arrival_rates):
            raise ValueError("arrival_rates must not repeat a value")
        return self
