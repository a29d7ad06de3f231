"""A loaded engine, bound to memory that somebody else allocates. No GPU: a stand-in for the SDK computes."""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.tensorrt.loaded_engine import LoadedEngine
from tests.errors import raises


class _Severity(enum.IntEnum):
    ERROR = 1
    WARNING = 2


class _Context:
    """Adds up each image's bytes, at the addresses that are bound at the time of the call."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "input" else (self.shape[0], 1)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        if stream < 0:
            return False
        size = int(np.prod(self.shape))
        images = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.addresses["input"]))
        sums = images.reshape(self.shape[0], -1).sum(axis=1, dtype=np.float32)
        ctypes.memmove(self.addresses["logits"], sums.ctypes.data, sums.nbytes)
        return True


def sdk(*, refuses: bool = False, host_code: bool = False) -> Any:
    """A module like `tensorrt`; with `host_code` its engine is loaded only if that is allowed."""
    context = _Context()
    types = {"input": "DataType.UINT8", "logits": "DataType.FLOAT"}
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: ["input", "logits"][index],
        get_tensor_mode=lambda name: "in" if name == "input" else "out",
        get_tensor_dtype=lambda name: types[name],
        create_execution_context=lambda: context,
    )

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, _serialized: bytes) -> Any:
            if refuses or (host_code and not self.engine_host_code_allowed):
                self._log.log(_Severity.ERROR, "the serialized engine is of another version")
                return None
            return engine

    class Base:
        Severity = _Severity

        def __init__(self) -> None:
            pass

    return SimpleNamespace(
        Runtime=Runtime, ILogger=Base, TensorIOMode=SimpleNamespace(INPUT="in"), context=context
    )


class _Memory:
    """Arrays in the host's memory, by the name of the tensor."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        self.arrays[name] = np.zeros(shape, dtype)
        return self.arrays[name].ctypes.data


def test_two_bindings_of_one_engine_run_in_turns() -> None:
    trt = sdk()
    engine = LoadedEngine(trt, b"engine", "tensorrt-fp32", host_code=False)
    assert (engine.input, engine.outputs) == ("input", ["logits"])
    small, large = _Memory(), _Memory()
    calls = [engine.bind((1, 2, 2, 1), small), engine.bind((3, 2, 2, 1), large)]
    assert small.arrays["input"].dtype == np.uint8
    assert small.arrays["logits"].dtype == np.float32
    small.arrays["input"][...] = 1
    large.arrays["input"][...] = 2
    for _ in range(2):
        small.arrays["logits"][...] = large.arrays["logits"][...] = 0
        for call in calls:
            call(7)
        assert small.arrays["logits"].tolist() == [[4.0]]
        assert large.arrays["logits"].tolist() == [[8.0]] * 3
    assert trt.context.streams == [7] * 4


def test_an_engine_that_does_not_run_is_an_error() -> None:
    engine = LoadedEngine(sdk(), b"engine", "tensorrt-fp32", host_code=False)
    call = engine.bind((1, 2, 2, 1), _Memory())
    with raises(StageError, what="could not run the engine"):
        call(-1)


def test_a_refused_engine_is_an_error_with_the_messages_of_the_sdk() -> None:
    with raises(StageError, what="cannot load the engine") as caught:
        LoadedEngine(sdk(refuses=True), b"engine", "tensorrt-fp32", host_code=False)
    assert caught.value.where == "tensorrt-fp32"
    assert caught.value.why == "the serialized engine is of another version"


def test_host_code_runs_only_if_it_is_allowed() -> None:
    with raises(StageError, what="cannot load the engine"):
        LoadedEngine(sdk(host_code=True), b"engine", "tensorrt-fp32", host_code=False)
    LoadedEngine(sdk(host_code=True), b"engine", "tensorrt-fp32", host_code=True)
