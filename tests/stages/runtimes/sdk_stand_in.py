"""Stand-ins for the classic SDK 10.12 and 11.4: the calls that building an engine takes, with the
differences that the vendor's migration pages list. They build nothing; the real builder that can be had
without a GPU is TensorRT for RTX, and the real SDK is tested in tests/gpu."""

from __future__ import annotations

import enum
import json
from types import SimpleNamespace
from typing import Any

import onnx

FLAGS = ("REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN", "TF32", "EXCLUDE_LEAN_RUNTIME")
REMOVED_FLAGS = ("FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS")
GPU = "stand-in GPU"
LEAN = b"engine with a lean runtime"
"""A version-compatible engine: it is loaded only where host code is allowed."""

CONV_10 = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Location": "Device",
            "Dimensions": [4, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
        }
    ],
    "Outputs": [
        {
            "Name": "y",
            "Location": "Device",
            "Dimensions": [4, 256, 28, 28],
            "Format/Datatype": "Row major linear FP32",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32",
    "Metadata": "[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu1/Relu]",
}
GEMM_10 = {
    "Name": "head",
    "LayerType": "gemm",
    "Inputs": [{"Name": "y", "Dimensions": [4, 256], "Format/Datatype": "Row major linear FP16 format"}],
    "Outputs": [{"Name": "logits", "Dimensions": [4, 10], "Format/Datatype": "Row major linear FP32"}],
    "ParameterType": "MatrixMultiply",
    "Metadata": "[ONNX Layer: node_linear]",
}
REFORMAT_10 = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "input", "Format/Datatype": "N/A due to dynamic shapes"}],
    "Outputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
}
LAYERS_10: dict[str, list[Any]] = {"Layers": [REFORMAT_10, CONV_10, GEMM_10], "Bindings": ["input", "logits"]}


def as_11(layer: dict[str, Any]) -> dict[str, Any]:
    """Return the layer in the form of 11: format and type are two fields."""
    types = {"Int8": "Int8", "FP32": "Float", "FP16": "Half"}

    def tensor(described: dict[str, Any]) -> dict[str, Any]:
        text = described["Format/Datatype"]
        kind = next((name for word, name in types.items() if word in text), "Float")
        rest = {key: value for key, value in described.items() if key != "Format/Datatype"}
        return {**rest, "DataType": kind, "Format": "Row major linear format (kLINEAR)"}

    return {
        **layer,
        "Inputs": [tensor(described) for described in layer["Inputs"]],
        "Outputs": [tensor(described) for described in layer["Outputs"]],
    }


LAYERS_11 = {
    "Layers": [as_11(layer) for layer in LAYERS_10["Layers"]],
    "I/O Tensors": [{"Name": "input", "IOMode": "Input", "DataType": "Uint8", "Dimensions": [-1, 24, 24, 3]}],
}


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        self.dtype = SimpleNamespace(__str__=lambda: "DataType.FLOAT")


class Engine:
    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    def create_execution_context(self) -> Any:
        return SimpleNamespace(shapes={}, set_input_shape=lambda name, shape: True)

    def create_engine_inspector(self) -> Any:
        engine = self

        class Inspector:
            execution_context: Any = None

            def get_engine_information(self, form: Any) -> str:
                # Without a context whose sizes are set, a dynamic engine reports no types.
                return json.dumps(engine._report) if self.execution_context else json.dumps({"Layers": ["a"]})

        return Inspector()


def sdk(version: str) -> SimpleNamespace:
    """The module `tensorrt` of that version; `module.built` holds the configuration of each engine."""
    major = int(version.split(".")[0])
    flags = FLAGS if major >= 11 else FLAGS + REMOVED_FLAGS
    creation = {"STRONGLY_TYPED": 1} if major >= 11 else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    built: list[Any] = []

    class Config:
        """Has no attribute that the version does not have: a slip is an AttributeError."""

        __slots__ = (
            "builder_optimization_level",
            "cleared",
            "flags",
            "hardware_compatibility_level",
            "profiles",
            "profiling_verbosity",
            "progress_monitor",
            "timing_cache",
            "workspace",
        )

        def __init__(self) -> None:
            self.flags: list[str] = []
            self.cleared: list[str] = []
            self.profiles: list[Any] = []
            self.timing_cache = b""
            self.hardware_compatibility_level = None

        def set_flag(self, flag: Any) -> None:
            self.flags.append(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self.cleared.append(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.workspace = size

        def add_optimization_profile(self, profile: Any) -> int:
            self.profiles.append(profile.shapes)
            return len(self.profiles) - 1

        def create_timing_cache(self, blob: bytes) -> bytes:
            return blob

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            if cache and not cache.startswith(f"{version} {GPU}".encode()) and not ignore_mismatch:
                return False
            self.timing_cache = cache
            return True

        def get_timing_cache(self) -> Any:
            cache = self.timing_cache or f"{version} {GPU}".encode()
            return SimpleNamespace(serialize=lambda: cache)

    class Network:
        def __init__(self, flags: int) -> None:
            # Before 11 a network is weakly typed unless it is asked for; from then on always strongly.
            self.strongly_typed = major >= 11 or bool(flags & 2)
            self.inputs: list[Tensor] = []
            self.outputs: list[Tensor] = []

        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))
        num_layers = 3

        def get_input(self, index: int) -> Tensor:
            return self.inputs[index]

        def get_output(self, index: int) -> Tensor:
            return self.outputs[index]

    class Parser:
        num_errors = 0

        def __init__(self, network: Network, log: Any) -> None:
            self._network = network

        def parse(self, blob: bytes) -> bool:
            graph = onnx.load_from_string(blob).graph
            self._network.inputs = [Tensor(value) for value in graph.input]
            self._network.outputs = [Tensor(value) for value in graph.output]
            return True

    class Builder:
        def __init__(self, log: Any) -> None:
            self._log = log

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(
                shapes=shapes, set_shape=lambda name, low, opt, high: shapes.update({name: (low, opt, high)})
            )

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            if not network.strongly_typed or not config.profiles:
                self._log.log(module.ILogger.Severity.ERROR, "weakly typed, or no optimisation profile")
                return None
            monitor: Any = getattr(config, "progress_monitor")  # noqa: B009 - a slot without a type
            monitor.phase_start("Building engine", None, 2)
            assert monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")
            built.append(config)
            return LEAN if "VERSION_COMPATIBLE" in config.flags else b"engine"

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, blob: bytes) -> Engine | None:
            if blob == LEAN and not self.engine_host_code_allowed:
                return None
            assert blob == LEAN or not self.engine_host_code_allowed, "no other engine may run host code"
            return Engine(LAYERS_11 if major >= 11 else LAYERS_10)

    class Logger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

    class Monitor:
        pass

    module = SimpleNamespace(
        __version__=version,
        built=built,
        ILogger=Logger,
        IProgressMonitor=Monitor,
        Builder=Builder,
        OnnxParser=Parser,
        BuilderFlag=enum.Enum("BuilderFlag", {name: name for name in flags}),
        NetworkDefinitionCreationFlag=enum.IntEnum("NetworkDefinitionCreationFlag", creation),
        MemoryPoolType=enum.Enum("MemoryPoolType", ["WORKSPACE"]),
        ProfilingVerbosity=enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"]),
        LayerInformationFormat=enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"]),
        HardwareCompatibilityLevel=enum.Enum(
            "HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
        ),
        Runtime=Runtime,
    )
    return module
