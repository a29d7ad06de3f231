"""Energy sources, read from trees and a library like those of real boards."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from stages.measuring import energy


def write(root: Path, path: str, text: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n", encoding="utf-8")
    return file


def rapl(root: Path, zone: str, name: str, microjoules: int) -> Path:
    write(root, f"sys/class/powercap/{zone}/name", name)
    write(root, f"sys/class/powercap/{zone}/max_energy_range_uj", 262_143_328_850)
    return write(root, f"sys/class/powercap/{zone}/energy_uj", microjoules)


def test_rapl_sums_packages_and_neither_cores_nor_memory(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    cores = rapl(tmp_path, "intel-rapl:0:0", "core", 0)
    source = energy.find_source(False, tmp_path)
    assert not isinstance(source, str)
    assert source.name == "RAPL, 2 packages"
    source.start()
    first.write_text("4000000", encoding="utf-8")
    second.write_text("5500000", encoding="utf-8")
    cores.write_text("9000000", encoding="utf-8")
    assert source.stop() == pytest.approx(3.5)


def test_a_counter_that_wraps_is_followed(tmp_path: Path) -> None:
    file = rapl(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    source = energy.find_source(False, tmp_path)
    assert not isinstance(source, str)
    source.start()
    file.write_text("1000000", encoding="utf-8")
    assert source.stop() == pytest.approx(262143.32885 - 262143.0 + 1.0)


def test_why_there_is_no_source(tmp_path: Path) -> None:
    assert "no RAPL energy counters" in str(energy.find_source(False, tmp_path))
    assert "libnot-here.so is not here" in str(energy.find_source(True, tmp_path, nvml="libnot-here.so"))
    if os.geteuid() != 0:
        rapl(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
        assert "chmod a+r" in str(energy.find_source(False, tmp_path))
    figures = energy.figures("no source", joules=0, idle_w=0, seconds=2, inferences=10, batch=1)
    assert figures["why_not"] == "no source"
    assert figures["joules_per_image"] is None


def test_a_tegra_board_s_whole_rail_is_summed_over_time(tmp_path: Path) -> None:
    for channel, (rail, millivolts, milliamperes) in enumerate(
        [("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 400)], start=1
    ):
        write(tmp_path, f"sys/class/hwmon/hwmon1/in{channel}_label", rail)
        write(tmp_path, f"sys/class/hwmon/hwmon1/in{channel}_input", millivolts)
        write(tmp_path, f"sys/class/hwmon/hwmon1/curr{channel}_input", milliamperes)
    source = energy.find_source(True, tmp_path)
    assert not isinstance(source, str)
    assert source.name == "INA power monitor, VDD_IN"
    assert energy.idle_watts(source, 0.2) == pytest.approx(10.0, rel=0.15)


def test_figures_by_hand() -> None:
    source = energy.Counter("a counter", lambda: [0.0])
    figures = energy.figures(source, joules=60.0, idle_w=10.0, seconds=2.0, inferences=100, batch=4)
    assert figures["joules_per_image"] == 0.15
    assert figures["joules_per_image_over_idle"] == 0.1
    assert (figures["watts"], figures["idle_watts"]) == (30.0, 10.0)
    short = energy.figures(source, joules=1.0, idle_w=1.0, seconds=0.1, inferences=1, batch=1)
    assert "too short" in short["why_not"]


NVML = """
#include <stddef.h>
static unsigned long long millijoules = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = &millijoules;
    return index != 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    if (device != &millijoules) return 2;
    *energy = (millijoules += 2500);
    return STATUS;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nvml_is_called_as_its_header_says(tmp_path: Path) -> None:
    """A library with the signatures of nvml.h: handles are whole pointers, the counter millijoules."""
    for status in (0, 3):
        code = write(tmp_path, "nvml.c", NVML.replace("STATUS", str(status)))
        library = tmp_path / f"libnvml{status}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(code)], check=True)
    source = energy.find_source(True, tmp_path, nvml=str(tmp_path / "libnvml0.so"))
    assert not isinstance(source, str)
    source.start()
    assert source.stop() == pytest.approx(2.5)
    assert "counts no energy" in str(energy.find_source(True, tmp_path, nvml=str(tmp_path / "libnvml3.so")))


def test_the_meter_s_thread_ends(tmp_path: Path) -> None:
    meter = energy.PowerMeter("steady", lambda: 4.0)
    before = threading.active_count()
    meter.start()
    time.sleep(0.12)
    assert meter.stop() == pytest.approx(4.0 * 0.12, rel=0.5)
    assert threading.active_count() == before
