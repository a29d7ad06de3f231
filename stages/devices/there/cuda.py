"""The few calls of the CUDA runtime library that running an engine takes, by ctypes."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from stages.devices.there.sampling import Unavailable

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class Cuda:
    """One stream of the GPU, and memory for it.

    What is allocated lives as long as the process, which measures one target and ends.

    Attributes:
        stream: its handle.

    Raises:
        Unavailable: the library is missing, or one of its calls fails; from every method.
    """

    def __init__(self) -> None:
        self._library = _library()
        stream = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(stream)))
        self.stream = int(stream.value or 0)

    def allocate(self, size_bytes: int) -> ctypes.c_void_p:
        """Allocate memory on the GPU."""
        address = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(1, size_bytes))))
        return address

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Allocate an array in page-locked memory, from which copies do not go through another buffer."""
        size_bytes = max(1, math.prod(shape) * dtype.itemsize)
        address = ctypes.c_void_p()
        self._check(self._library.cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(size_bytes)))
        memory = (ctypes.c_byte * size_bytes).from_address(int(address.value or 0))
        return np.frombuffer(memoryview(memory), dtype=dtype, count=math.prod(shape)).reshape(shape)

    def copy_in(self, device: ctypes.c_void_p, host: np.ndarray) -> None:
        """Put a copy to the GPU on the stream."""
        self._copy(device, host.ctypes.data_as(ctypes.c_void_p), host.nbytes, HOST_TO_DEVICE)

    def copy_out(self, host: np.ndarray, device: ctypes.c_void_p) -> None:
        """Put a copy from the GPU on the stream."""
        self._copy(host.ctypes.data_as(ctypes.c_void_p), device, host.nbytes, DEVICE_TO_HOST)

    def wait(self) -> None:
        """Wait until the stream has done all of it."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(self.stream)))

    def _copy(self, to: ctypes.c_void_p, of: ctypes.c_void_p, size_bytes: int, direction: int) -> None:
        size, stream = ctypes.c_size_t(size_bytes), ctypes.c_void_p(self.stream)
        self._check(self._library.cudaMemcpyAsync(to, of, size, direction, stream))

    def _check(self, code: int) -> None:
        if code:
            raise Unavailable(f"the CUDA runtime library reports error {code}")


def _library() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Unavailable("the CUDA runtime library (libcudart) was not found on the device")
