"""An engine that the SDK has loaded, and inferences on the stream, whoever allocates the memory.

Light: it needs numpy and the SDK's module only. Here PyTorch allocates the buffers
(`stages.runtimes.tensorrt.session`), on a device the CUDA runtime library does
(`stages.devices.there.engines`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.tensorrt.messages import Messages
from stages.runtimes.tensorrt.sidecar import REBUILD

Allocate = Callable[[str, tuple[int, ...], np.dtype[Any]], int]
"""Gives a tensor memory on the GPU, by its name, shape and type; returns the address. The memory lives as
long as the binding is used."""

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""The SDK's name of a tensor's type, and numpy's."""

LAST_MESSAGES = 5


class LoadedEngine:
    """One engine with one execution context.

    Attributes:
        input: name of the only input.
        outputs: names of the outputs.
    """

    def __init__(self, trt: Any, serialized: bytes, where: str, *, host_code: bool) -> None:
        """Deserialize the engine and make its context.

        Args:
            trt: the module `tensorrt` or `tensorrt_rtx`.
            serialized: the engine's bytes. They are native code: the caller knows where they come from.
            where: what an error names, e.g. the target's folder.
            host_code: let the lean runtime inside a version-compatible engine run.

        Raises:
            StageError: the SDK refuses the engine; with its own messages.
        """
        self._where = where
        self._messages = Messages(trt)
        # Runtime and engine stay referenced: the context uses both.
        self._runtime = trt.Runtime(self._messages.logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise self._fault("TensorRT cannot load the engine")
        self._context = _context(trt, self._engine)
        if self._context is None:
            raise self._fault("TensorRT cannot make room for the engine on the GPU")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        (self.input,) = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]
        self._names = names
        self._bound: dict[str, int] | None = None

    def bind(self, shape: tuple[int, ...], allocate: Allocate) -> Callable[[int], None]:
        """Bind memory for one shape of the input.

        Args:
            shape: of the input, batch first.
            allocate: called once for each input and output.

        Returns:
            A call that puts one inference on the stream of the given handle. Several bindings of one engine
            may be called in turns; each raises StageError if the SDK does not run it.
        """
        context = self._context
        self._bound = None
        context.set_input_shape(self.input, shape)
        addresses: dict[str, int] = {}
        for name in self._names:
            dtype = np.dtype(DTYPES[str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]])
            addresses[name] = allocate(name, tuple(context.get_tensor_shape(name)), dtype)

        def enqueue(stream: int) -> None:
            if self._bound is not addresses:  # another binding of this engine ran in between
                context.set_input_shape(self.input, shape)
                for name, address in addresses.items():
                    context.set_tensor_address(name, address)
                self._bound = addresses
            if not context.execute_async_v3(stream):
                raise self._fault("TensorRT could not run the engine")

        return enqueue

    def _fault(self, what: str) -> StageError:
        why = "\n".join(self._messages.errors()[-LAST_MESSAGES:]) or "it gave no reason"
        return StageError(what, where=self._where, why=why, hint=REBUILD)


def _context(trt: Any, engine: Any) -> Any:
    """Return an execution context.

    TensorRT for RTX specializes its kernels at once, so that none is exchanged for another while it is timed.
    """
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(config)
