"""Build networks with kdpipe's own runtimes, for the benchmarks of the latency harness."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from pipeline import machine
from pipeline.stage import Silent
from stages.measuring.launch import Subject
from stages.runtimes import registry
from stages.runtimes.base import Source
from stages.runtimes.images import natural_images
from stages.runtimes.settings import BuildSettings

CORNER = 16
"""Width and height in pixels of the image part for the extra work."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WithExtraWork(nn.Module):
    """A network with `layers` additional small convolutions on a corner of the image.

    Their result is part of the output. They are small enough to set a slow-down to about half a per cent of
    1 ms.
    """

    def __init__(self, network: nn.Module, layers: int, width: int) -> None:
        super().__init__()
        self.network = network
        parts: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(layers):
            parts += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.extra = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits + self.extra(images[:, :, :CORNER, :CORNER]).mean(dim=1, keepdim=True)


def subject(
    folder: Path,
    name: str,
    *,
    model: str,
    size: int,
    runtime: str,
    extra_layers: int = 0,
    extra_width: int = 8,
) -> Subject:
    """Build a target of `runtime` in fp32 in `folder`, from a timm model with random weights."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(model, pretrained=False)
    if extra_layers:
        network = WithExtraWork(network, extra_layers, extra_width)
    here = folder / name
    (here / "built").mkdir(parents=True)
    onnx = here / "network.onnx"
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, 3, size, size),),
        str(onnx),
        input_names=["input"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    source = Source(onnx, "fp32", (size, size, 3), "float32_nchw", MEAN, STD)
    facts = registry.get(runtime).build(source, here / "built", BuildSettings(), Silent(), here)
    images = here / "images.npy"
    np.save(images, natural_images((size, size, 3), 4))
    preprocessing = {"image_size": size, "channels": 3, "mean": list(MEAN), "std": list(STD)}
    return Subject(
        target={"model": "student", "target": name, "runtime": runtime, "precision": "fp32", "facts": facts},
        card={"preprocessing": preprocessing, "input": "float32_nchw"},
        folder=here / "built",
        images=images,
        work=here / "work",
    )


def where() -> list[str]:
    """Describe the machine and the versions, two lines."""
    packages = ("onnxruntime", "openvino", "torch", "timm", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"machine: {machine.cpu_model()}, {machine.usable_cores()} usable cores, "
        f"load average {machine.load_average()}, {platform.system()} {platform.release()}",
        f"versions: Python {platform.python_version()}, {versions}",
    ]
