"""GPU figures: what is made of the phases and of what NVML tells; the calls against a compiled library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from stages.measuring import gpu, nvml
from stages.measuring.contention import Watch
from stages.runtimes.on_gpu import GpuTiming, Phases


def test_phases_by_hand() -> None:
    summary = gpu.summarise([Phases(0.1, float(index), 0.2) for index in range(1, 501)])
    assert summary["n"] == 500
    assert (summary["to_gpu_p50_ms"], summary["inference_p50_ms"], summary["from_gpu_p50_ms"]) == (
        0.1,
        250.0,
        0.2,
    )
    assert summary["inference_p99_ms"] == 495.0
    assert summary["total_p50_ms"] == pytest.approx(250.3)
    assert gpu.summarise([Phases(1, 2, 3)] * 100)["inference_p99_ms"] is None


def test_as_many_phases_as_a_p99_needs() -> None:
    calls = [0]

    def one() -> Phases:
        calls[0] += 1
        return Phases(0.0, 1.0, 0.0)

    assert gpu.phases(GpuTiming(lambda: None, one))["inference_p99_ms"] == 1.0
    assert calls[0] == gpu.PHASES


def test_signs_of_throttling() -> None:
    assert gpu.throttle_signs([1950, 1980], []) == []
    assert gpu.throttle_signs(None, []) == []
    (moved,) = gpu.throttle_signs([1400, 1980], [])
    assert "between 1400 and 1980 MHz" in moved
    assert "--lock-gpu-clocks" in moved
    assert gpu.throttle_signs([1980, 1980], ["power cap"]) == ["the GPU reports: power cap"]


NVML = """
static unsigned int asked = 0;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &asked; return index != 0; }
int nvmlDeviceGetClockInfo(void *device, int type, unsigned int *mhz) {
    if (device != &asked || type != 1) return 2;
    *mhz = asked++ == 1 ? 1200 : 1980;
    return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    if (device != &asked || sensor != 0) return 2;
    *celsius = 40 + asked;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    if (device != &asked) return 2;
    *reasons = asked == 2 ? 0x45 : 0x1;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) { return 3; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_throttled_gpu_is_told_in_the_health(tmp_path: Path) -> None:
    """A library with the signatures of nvml.h whose GPU slows down while it is watched."""
    (tmp_path / "nvml.c").write_text(NVML, encoding="utf-8")
    library = tmp_path / "libnvml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    driver = nvml.connect(str(library))
    assert isinstance(driver, nvml.Nvml)
    assert driver.energy_j() is None
    watch = Watch((0,), 2, root=tmp_path, gpu=gpu.GpuWatch(driver))
    watch.begin()
    watch.look()
    health = watch.end(None)
    assert health["gpu"]["sm_clock_mhz"] == [1200, 1980]
    assert health["gpu"]["temperature_c"] == [41, 43]
    assert "throttled" in health["flags"]
    signs = " ".join(health["throttled_by"])
    assert "power cap" in signs
    assert "thermal slow-down by hardware" in signs
    assert "1200 and 1980" in signs


def test_without_a_driver_it_says_so() -> None:
    assert nvml.connect("libnot-here.so") == "the NVIDIA driver's library libnot-here.so is not here"
