"""The harness for GPUs, proved with PyTorch alone: CUDA events, CUDA graphs, NVML. No TensorRT is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from stages.measuring import energy, gpu, latency, nvml
from stages.measuring.contention import Watch
from stages.runtimes.on_gpu import GpuSession, GpuTiming, Phases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SIZE, DEPTH = 1024, 8


class Network:
    """A chain of matrix products with ReLU, on page-locked images, as a session on a GPU offers it."""

    def __init__(self) -> None:
        self.facts: dict[str, object] = {}
        generator = torch.Generator().manual_seed(0)
        self.weights = [
            (torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5).cuda() for _ in range(DEPTH)
        ]
        self.stream = torch.cuda.Stream()

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            images = torch.relu(images @ weight)
        return images

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        self.facts = {"cuda_graph": cuda_graph, "transfers": transfers}
        host = torch.from_numpy(images).pin_memory()
        device = torch.empty_like(host, device="cuda")
        device.copy_(host)
        with torch.cuda.stream(self.stream):
            result = self.infer(device)  # libraries make their handles on the first call
        self.stream.synchronize()
        self.result = torch.empty(result.shape, pin_memory=True)
        run = self._captured(device, result) if cuda_graph else self._plain(device, result)

        def call() -> None:
            with torch.cuda.stream(self.stream):
                if transfers:
                    device.copy_(host, non_blocking=True)
                run()
                if transfers:
                    self.result.copy_(result, non_blocking=True)
            self.stream.synchronize()

        def phases() -> Phases:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            with torch.cuda.stream(self.stream):
                marks[0].record(self.stream)
                device.copy_(host, non_blocking=True)
                marks[1].record(self.stream)
                run()
                marks[2].record(self.stream)
                self.result.copy_(result, non_blocking=True)
                marks[3].record(self.stream)
            self.stream.synchronize()
            return Phases(*(marks[i].elapsed_time(marks[i + 1]) for i in range(3)))

        return GpuTiming(call, phases)

    def _plain(self, device: torch.Tensor, result: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            result.copy_(self.infer(device))

        return run

    def _captured(self, device: torch.Tensor, result: torch.Tensor) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            result.copy_(self.infer(device))
        return graph.replay


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """So that the GPU's products can be held against the CPU's."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    made: np.ndarray = np.random.default_rng(0).standard_normal((64, SIZE)).astype(np.float32)
    return made


@pytest.fixture
def driver() -> nvml.Nvml:
    found = nvml.connect()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _sampled(call: Callable[[], None], watch: Watch | None = None) -> latency.Samples:
    return latency.sample(
        call, warmup_s=0.3, duration_s=1.0, max_duration_s=3.0, min_samples=100, watch=watch
    )


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_call_computes_what_the_cpu_computes(
    network: Network, images: np.ndarray, cuda_graph: bool
) -> None:
    assert isinstance(network, GpuSession)
    timing = network.timed_on_gpu(images, cuda_graph=cuda_graph, transfers=True)
    network.result.zero_()
    timing.call()
    expected = torch.from_numpy(images)
    for weight in network.weights:
        expected = torch.relu(expected @ weight.cpu())
    torch.testing.assert_close(network.result, expected, rtol=1e-3, atol=1e-3)
    network.result.zero_()
    timing.phases()
    torch.testing.assert_close(network.result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_cuda_events_lie_inside_the_wall(network: Network, images: np.ndarray, cuda_graph: bool) -> None:
    """By medians: what the GPU's clock tells of a call is no more than what the wall's does."""
    timing = network.timed_on_gpu(images, cuda_graph=cuda_graph, transfers=True)
    samples = _sampled(timing.call)
    found = gpu.phases(timing)
    assert found["clock"] == "CUDA events"
    assert found["n"] == gpu.PHASES
    for phase in ("to_gpu", "inference", "from_gpu"):
        assert found[f"{phase}_p50_ms"] > 0
        assert found[f"{phase}_p99_ms"] >= found[f"{phase}_p50_ms"]
    wall_ms = float(np.median(samples.ns)) * 1e-6
    # The events themselves, recorded between the phases, cost some microseconds.
    assert found["inference_p50_ms"] <= 1.05 * wall_ms + 0.02
    # 64 x 1024 floats are 256 KiB: a copy over PCIe or better is far below a millisecond.
    assert found["to_gpu_p50_ms"] < 1.0


def test_a_call_ends_when_the_gpu_is_done(network: Network, images: np.ndarray) -> None:
    """What is timed is not the launch alone: nothing is left on the stream when a call returns."""
    timing = network.timed_on_gpu(images, cuda_graph=False, transfers=False)
    for _ in range(20):
        timing.call()
        assert network.stream.query(), "the stream is idle"


def test_twice_the_work_takes_longer(network: Network, images: np.ndarray) -> None:
    once = network.timed_on_gpu(images, cuda_graph=True, transfers=False)
    alone = gpu.phases(once)["inference_p50_ms"]
    weights = network.weights
    try:
        network.weights = weights * 4
        fourfold = gpu.phases(network.timed_on_gpu(images, cuda_graph=True, transfers=False))
    finally:
        network.weights = weights
    assert fourfold["inference_p50_ms"] > 2.0 * alone


def test_nvml_tells_clock_temperature_and_energy_of_this_gpu(driver: nvml.Nvml) -> None:
    clock, temperature = driver.sm_clock_mhz(), driver.temperature_c()
    assert clock is not None
    assert 100 <= clock <= 5000
    assert temperature is not None
    assert 10 <= temperature <= 110
    reasons = driver.throttle_reasons()
    assert reasons is None or set(reasons) <= set(nvml.THROTTLE_REASONS.values())
    before = driver.energy_j()
    if before is None:
        pytest.skip("this GPU counts no energy")
    time.sleep(0.5)
    after = driver.energy_j()
    assert after is not None
    assert after > before, "a GPU that is powered draws something"


def test_the_health_of_a_measurement_has_the_gpus_state(
    network: Network, images: np.ndarray, driver: nvml.Nvml
) -> None:
    timing = network.timed_on_gpu(images, cuda_graph=True, transfers=True)
    watch = Watch((0,), 1, gpu=gpu.GpuWatch(driver))
    health = _sampled(timing.call, watch).health
    low, high = health["gpu"]["sm_clock_mhz"]
    assert 100 <= low <= high <= 5000
    assert min(health["gpu"]["temperature_c"]) > 10
    assert ("throttled" in health["flags"]) == bool(health["throttled_by"])
    assert set(health["gpu"]["throttled_by"]) <= set(health["throttled_by"])


def test_a_busy_gpu_draws_more_than_an_idle_one(network: Network, images: np.ndarray) -> None:
    meter = energy.find_source(on_gpu=True)
    if isinstance(meter, str):
        pytest.skip(meter)
    timing = network.timed_on_gpu(images, cuda_graph=True, transfers=False)
    idle_w = energy.idle_watts(meter, 1.5)
    meter.start()
    began = time.perf_counter()
    inferences = 0
    while time.perf_counter() - began < 2.0:
        timing.call()
        inferences += 1
    seconds = time.perf_counter() - began
    found = energy.figures(
        meter, joules=meter.stop(), idle_w=idle_w, seconds=seconds, inferences=inferences, batch=64
    )
    assert found["why_not"] is None
    assert found["watts"] > found["idle_watts"] > 0
    assert 0 < found["joules_per_image_over_idle"] < found["joules_per_image"]
