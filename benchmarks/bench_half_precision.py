"""Compare converters to fp16 and bf16 on the same ONNX files: ours, ONNX Runtime's and ModelOpt's AutoCast.

    python benchmarks/bench_half_precision.py [--images 64] [--networks resnet18,overflowing] [--out FILE]

The networks are timm networks at 224 pixels with random weights, and a network whose activations reach 1e5
and more. The timm networks have uneven normalisation statistics and non-zero gates, so their logits spread.
ONNX Runtime executes each converted file node by node, with every rounding written into the graph
(`stages.runtimes.half.proof`), on images with the statistics of photographs. The converters do not see these
images. TensorRT for RTX builds each file if it is installed. ModelOpt (`pip install nvidia-modelopt` with
onnx_graphsurgeon, onnxslim, lief, polygraphy, pynvml) is optional: without it, its rows contain the error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import timm
import torch
from torch import nn

from pipeline.errors import StageError
from pipeline.machine import cpu_model
from stages.runtimes.base import Source
from stages.runtimes.half.converting import to_half
from stages.runtimes.half.proof import as_computed
from stages.runtimes.images import natural_images
from stages.runtimes.parity import compare, source_logits
from stages.runtimes.tensorrt.build import Specification, build

NETWORKS = (
    "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "vit_tiny_patch16_224", "mobilevit_xxs",
    "convnext_atto", "overflowing",
)  # fmt: skip
SIZE, CLASSES = 224, 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Converter = Callable[[Path, Source], onnx.ModelProto]


class Overflowing(nn.Module):
    """Two scaled linear layers: activations between them reach 1e5 and more, the logits do not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 7, stride=8), nn.ReLU(), nn.Conv2d(32, 64, 5, stride=4))
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, CLASSES)
        with torch.no_grad():
            self.up.weight.mul_(1e5)
            self.down.weight.mul_(1e-4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.body(images).relu().amax((2, 3))
        logits: torch.Tensor = self.down(self.up(pooled).relu())
        return logits


@dataclass(frozen=True)
class Row:
    """The figures of a converter's file, or the error."""

    network: str
    precision: str
    converter: str
    fault: str = ""
    seconds: float = 0.0
    checked: bool = False
    relative: float = float("nan")
    agreement: float = float("nan")
    not_finite: int = 0
    share_of_size: float = float("nan")
    engine: str = ""


def network(name: str) -> nn.Module:
    """Create a network with random weights whose logits spread."""
    torch.manual_seed(0)
    if name == "overflowing":
        return Overflowing().eval()
    model = timm.create_model(name, num_classes=CLASSES)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 and (key.endswith("gamma") or not parameter.any()):
            parameter.data.normal_(0.0, 0.3, generator=generator)
        if parameter.ndim == 2:
            parameter.data.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5, generator=generator)
    return model.eval()


def export(name: str, folder: Path) -> Path:
    file = folder / f"{name}.onnx"
    program = torch.onnx.export(
        network(name),
        (torch.zeros(2, 3, SIZE, SIZE),),
        dynamo=True,
        opset_version=20,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, str(file))
    return file


def convert_with_kdpipe(file: Path, source: Source) -> onnx.ModelProto:
    return to_half(onnx.load(str(file)), source)[0]


def convert_with_onnxruntime(file: Path, source: Source) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if source.precision == "bf16":
        raise ValueError("the converter does not support bf16")
    converted: onnx.ModelProto = convert_float_to_float16(onnx.load(str(file)), keep_io_types=True)
    return converted


def convert_with_modelopt(file: Path, source: Source) -> onnx.ModelProto:
    from modelopt.onnx.autocast import convert_to_mixed_precision  # type: ignore[import-not-found,unused-ignore]

    converted: onnx.ModelProto = convert_to_mixed_precision(
        str(file), low_precision_type=source.precision, keep_io_types=True
    )
    return converted


CONVERTERS: dict[str, Converter] = {
    "kdpipe": convert_with_kdpipe,
    "onnxruntime": convert_with_onnxruntime,
    "modelopt": convert_with_modelopt,
}


def judge(file: Path, source: Source, name: str, images: np.ndarray, reference: np.ndarray) -> Row:
    """Convert a file with the converter `name`, and compare its logits with `reference` (images, classes)."""
    row = Row(file.stem, source.precision, name)
    started = time.perf_counter()
    try:
        with quiet():
            converted = CONVERTERS[name](file, source)
    except Exception as error:  # another project's converter may raise any exception
        return replace(row, fault=first_line(error))
    row = replace(row, seconds=time.perf_counter() - started)
    row = replace(row, share_of_size=converted.ByteSize() / file.stat().st_size)
    try:
        onnx.checker.check_model(converted, full_check=True)
        row = replace(row, checked=True)
    except Exception as error:
        row = replace(row, fault=f"checker: {first_line(error)}")
    try:
        logits = source_logits(as_computed(converted).SerializeToString(), source, images)
        agreement = compare(logits, reference)
        row = replace(
            row,
            relative=agreement.relative,
            agreement=agreement.top1_agreement,
            not_finite=int((~np.isfinite(logits)).sum()),
        )
    except Exception as error:
        row = replace(row, fault=f"does not run: {first_line(error)}")
    return replace(row, engine=build_with_tensorrt(converted))


def build_with_tensorrt(model: onnx.ModelProto) -> str:
    """Build an engine with TensorRT for RTX; return `yes`, or the reason why not."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        specification = Specification(
            package="tensorrt_rtx",
            engine=f"{folder}/model.engine",
            timings="",
            batches=(1, 1, 8),
            workspace_mb=512,
            optimization_level=3,
            device=False,
        )
        try:
            build(specification, model.SerializeToString(), lambda **_: None)
        except ImportError:
            return "not installed"
        except StageError as error:
            return f"no: {' '.join(error.why.split())[:70]}"
    return "yes"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress logs and all output of libraries."""
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:100]


def heading() -> str:
    names = ("onnx", "onnxruntime", "nvidia-modelopt", "tensorrt_rtx", "torch", "timm")
    return ", ".join([cpu_model(), f"python {platform.python_version()}", *map(_version, names)])


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def table(rows: list[Row]) -> str:
    head = "| network | precision | converter | checker | error / spread | same top-1 | not finite | size | "
    lines = [head + "RTX engine | seconds | remark |", "|" + " --- |" * 11]
    for row in rows:
        figures = (
            f"{row.relative:.2g} | {row.agreement:.0%} | {row.not_finite}"
            if np.isfinite(row.agreement)
            else "- | - | -"
        )
        size = f"{row.share_of_size:.2f}" if row.seconds else "-"
        accepted = ("yes" if row.checked else "no") if row.seconds else "-"
        lines.append(
            f"| {row.network} | {row.precision} | {row.converter} | {accepted} | {figures} | {size} | "
            f"{row.engine or '-'} | {row.seconds:.1f} | {row.fault.replace('|', '/')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="number of test images")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="networks, comma-separated")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    rows = []
    images = natural_images((SIZE, SIZE, 3), options.images, seed=77)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks.split(","):
            with quiet():
                file = export(name, Path(folder))
            source = Source(file, "fp32", (SIZE, SIZE, 3), "float32_nchw", MEAN, STD)
            reference = source_logits(file, source, images)
            for precision in ("fp16", "bf16"):
                for converter in CONVERTERS:
                    row = judge(file, replace(source, precision=precision), converter, images, reference)
                    rows.append(row)
                    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    report = f"{heading()}\n{options.images} images\n\n{table(rows)}"
    print(report)
    if options.out:
        options.out.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
