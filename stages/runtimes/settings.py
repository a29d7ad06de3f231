"""The profile's settings of targets and of their building."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from stages.fields import Settings, setting

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

ENGINES = ("onnxruntime_tensorrt", "tensorrt", "tensorrt_rtx")
"""Runtimes whose files take batches from `build.batch_min` to `build.batch_max` only."""


def _with_short_form(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a target take its bare name too."""
    full = dict(schema)
    schema.clear()
    schema.update(anyOf=[{"type": "string", "pattern": full["properties"]["name"]["pattern"]}, full])


class TargetSettings(Settings):
    """What to ship: a runtime and a precision. `onnxruntime-int8` is short for `{name: onnxruntime-int8}`."""

    model_config = ConfigDict(json_schema_extra=_with_short_form)

    name: str = setting(
        ..., "RUNTIME-PRECISION, e.g. tensorrt-fp16", pattern=r"^[a-z][a-z0-9_]*-(fp32|fp16|bf16|int8)$"
    )
    required: bool = setting(False, "a machine that cannot build it ends the run with exit code 4")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def runtime(self) -> str:
        """The part of the name before the precision."""
        return self.name.rpartition("-")[0]

    @property
    def precision(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("-")[2]


class BuildSettings(Settings):
    """How targets are compiled."""

    batch_min: int = setting(1, "smallest batch an engine takes", unit="images", ge=1)
    batch_opt: int | None = setting(
        None,
        "the batch an engine is tuned for: the batch that you run; null: the first of measure.batch_sizes",
        unit="images",
        ge=1,
    )
    batch_max: int = setting(32, "largest batch an engine takes", unit="images", ge=1)
    workspace_mb: int = setting(
        1024, "scratch memory TensorRT may use while it builds and runs", unit="MiB", ge=1
    )
    optimization_level: int = setting(3, "TensorRT's builder optimization level", ge=0, le=5)
    timing_cache: bool = setting(True, "keep TensorRT's timings for the next build on this GPU")
    refit: bool = setting(False, "TensorRT engines whose weights can be exchanged; larger and may be slower")
    hardware_compatible: Literal["none", "same_compute_capability", "ampere_plus"] = setting(
        "none", "GPUs that a TensorRT engine runs on besides the GPU that it is built on; may be slower"
    )
    version_compatible: bool = setting(
        False, "TensorRT engines for later minor versions too; needs trust_engine_host_code"
    )
    trust_engine_host_code: bool = setting(
        False, "let the lean runtime inside a version-compatible engine run as native code when it is loaded"
    )
    rtx_compute_capabilities: list[Annotated[str, Field(pattern=r"^(SM\d{2,3}|CURRENT)$")]] = setting(
        list, "GPUs of a TensorRT for RTX engine, e.g. [SM86, SM89]; empty: all that the version supports"
    )
    onnxruntime_optimization: Literal["basic", "extended", "all"] = setting(
        "extended", "graph optimization stored in the file; `all` ties it to this CPU"
    )

    keep_float: list[str] = setting(
        list, "names of ONNX nodes that stay in fp32 in fp16 and bf16 engines (shell wildcards)"
    )

    limit_fp32: float = setting(
        0.01,
        "largest logit difference of an fp32 target from its source: root mean square over spread",
        gt=0.0,
    )
    limit_fp16: float = setting(0.2, "the same of an fp16 target", gt=0.0)
    limit_bf16: float = setting(0.3, "the same of a bf16 target, which has three binary digits fewer", gt=0.0)
    limit_int8: float = setting(
        1.5,
        "the same of an int8 target; large because INT8 kernels saturate; unrelated logits come to 1.4",
        gt=0.0,
    )
    agreement: float = setting(
        30.0, "least share of the real images with the source's class", unit="%", ge=0.0, le=100.0
    )
    prove: bool = setting(
        True, "false: a proof that fails is noted, and the target counts as built all the same"
    )

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, tuned for, largest; a profile sets `batch_opt`, else it is the smallest."""
        return self.batch_min, self.batch_opt or self.batch_min, self.batch_max

    @model_validator(mode="after")
    def _batches_ordered(self) -> BuildSettings:
        smallest, tuned, largest = self.batches
        if not smallest <= tuned <= largest:
            raise ValueError(
                f"batch_min <= batch_opt <= batch_max must hold, found {smallest}, {tuned}, {largest}"
            )
        return self

    @model_validator(mode="after")
    def _host_code_is_trusted(self) -> BuildSettings:
        if self.version_compatible and not self.trust_engine_host_code:
            raise ValueError(
                "version_compatible puts a lean runtime into the engine, native code that runs when the "
                "engine is loaded: add trust_engine_host_code: true if you load only what you built"
            )
        return self
