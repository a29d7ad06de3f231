"""The settings of the section `measure`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stages.fields import Settings, setting


class MeasureSettings(Settings):
    """How latency and accuracy are measured: batch sizes, thread counts, durations."""

    batch_sizes: list[int] = setting(lambda: [1], "batch sizes to time", unit="images", min_length=1)
    threads: list[int] = setting(lambda: [1], "CPU thread counts to time", unit="threads", min_length=1)
    warmup_s: float = setting(0.3, "minimum warm-up before the first sample", unit="s", ge=0.0)
    warmup_max_s: float = setting(
        5.0, "maximum warm-up; it ends earlier when latencies are steady", unit="s", gt=0.0
    )
    duration_s: float = setting(
        2.0, "minimum sampling time of each combination of batch size and threads", unit="s", gt=0.0
    )
    max_duration_s: float = setting(
        10.0, "maximum sampling time, if samples are not steady earlier", unit="s", gt=0.0
    )
    min_samples: int = setting(50, "minimum number of samples of each combination", unit="samples", ge=10)
    resamples: int = setting(2000, "bootstrap resamples per interval", ge=100)
    pin: bool = setting(True, "bind each measurement to as many of the idlest cores as it has threads")
    compare_s: float = setting(
        2.0,
        "total time in which two targets of one runtime are timed in turns; 0: not at all",
        unit="s",
        ge=0.0,
    )
    compare_rounds: int = setting(20, "turns of each target per launch", unit="rounds", ge=4)
    compare_launches: int = setting(
        2,
        "how often both processes are started anew; a difference must show in each launch",
        unit="launches",
        ge=1,
    )
    reference: str | None = setting(
        None,
        "an earlier bundle (NAME.tar.zst); every target is timed in turns against the same target in it; "
        "`~` and $VARIABLES are expanded",
        min_length=1,
        keyed=False,
    )
    arrival_rates: list[float] = setting(
        list,
        "arrival rates for latency under load, at the first batch size and thread count",
        unit="batches/s",
    )
    arrivals: Literal["poisson", "regular"] = setting(
        "poisson", "gaps between arrivals: random like those of many users, or equal like those of a camera"
    )
    arrivals_s: float = setting(10.0, "length of the schedule at each rate", unit="s", gt=0.0)
    cuda_graph: bool = setting(False, "on a GPU, run the inference as one captured CUDA graph")
    transfers: bool = setting(True, "on a GPU, include the copies of images and outputs in the latency")
    energy_idle_s: float = setting(
        1.0, "how long idle power is measured, if energy can be measured", unit="s", gt=0.0
    )
    accuracy_batch: int = setting(64, "batch size for accuracy", unit="images", ge=1)
    golden_images: int = setting(
        16, "test images that the bundle contains with their outputs, for its self-test", unit="images", ge=1
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
            raise ValueError("reference needs timing in turns: compare_s must be above 0")
        if any(rate <= 0 for rate in self.arrival_rates):
            raise ValueError("arrival_rates must be above 0")
        if len(set(self.arrival_rates)) < len(self.arrival_rates):
            raise ValueError("arrival_rates must not repeat a value")
        return self
