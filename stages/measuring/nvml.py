"""The NVIDIA driver's library NVML through ctypes, without a package. Light: standard library only."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

_SM_CLOCK, _GPU_TEMPERATURE = 1, 0

THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slow-down",
    0x10: "sync boost",
    0x20: "thermal slow-down by software",
    0x40: "thermal slow-down by hardware",
    0x80: "power brake",
}
"""Bits of the throttle reasons (nvml.h) that slow a busy GPU down: not idle, not application clocks."""


@dataclass(frozen=True)
class Nvml:
    """GPU 0 through NVML. Values that the GPU does not report are None.

    Attributes:
        library: The loaded library.
        device: NVML's handle of the GPU.
    """

    library: Any
    device: Any

    def energy_j(self) -> float | None:
        """Return the joules since the driver was loaded."""
        value = ctypes.c_ulonglong()
        failed = self.library.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(value))
        return None if failed else value.value * 1e-3

    def sm_clock_mhz(self) -> int | None:
        """Return the clock of the streaming multiprocessors in MHz."""
        value = ctypes.c_uint()
        failed = self.library.nvmlDeviceGetClockInfo(self.device, _SM_CLOCK, ctypes.byref(value))
        return None if failed else value.value

    def temperature_c(self) -> int | None:
        """Return the GPU's temperature in degrees Celsius."""
        value = ctypes.c_uint()
        failed = self.library.nvmlDeviceGetTemperature(self.device, _GPU_TEMPERATURE, ctypes.byref(value))
        return None if failed else value.value

    def throttle_reasons(self) -> list[str] | None:
        """Return those of `THROTTLE_REASONS` that are active now."""
        value = ctypes.c_ulonglong()
        failed = self.library.nvmlDeviceGetCurrentClocksThrottleReasons(self.device, ctypes.byref(value))
        return None if failed else [reason for bit, reason in THROTTLE_REASONS.items() if value.value & bit]


def connect(library: str = LIBRARY) -> Nvml | str:
    """Return GPU 0, or the reason why NVML cannot be used."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return f"the NVIDIA driver's library {library} is not here"
    device = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return "NVML finds no GPU"
    return Nvml(nvml, device)
