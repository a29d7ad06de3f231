"""The preprocessing contract: one JPEG, four ways to the same logits.

The data pipeline and PyTorch; the exported file, which normalises inside; the built targets; and the
bundle's program on the device, which decodes the file itself.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.stage import Context
from stages import build, export
from stages.bundle import predict
from stages.data.images import ImageFormat, decode
from stages.data.load import load
from stages.data.settings import ImageFolderSettings
from stages.models.card import ModelCard, save
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.onnx_files.metadata import feed
from stages.onnx_files.parity import reference_logits
from stages.onnx_files.settings import ExportSettings
from stages.runtimes import registry
from stages.runtimes.base import Source
from stages.runtimes.settings import BuildSettings, TargetSettings
from tests.stages.onnx_files.trained import TINY

pytestmark = pytest.mark.long

SIZE = 24
CLASSES = ("ape", "bee", "cat")
TARGETS = ("onnxruntime-fp32", "openvino-fp32")
TOLERANCE = 1e-3
"""Largest logit difference, as a share of the standard deviation of all logits."""

Drawn = dict[str, tuple[str, tuple[int, int], int]]

JPEGS: Drawn = {
    "colour": ("RGB", (40, 31), 1),
    "as large as the network's": ("RGB", (SIZE, SIZE), 1),
    "odd and upright": ("RGB", (23, 57), 1),
    "large": ("RGB", (301, 207), 1),
    "grey": ("L", (33, 45), 1),
    "four inks": ("CMYK", (37, 29), 1),
    "one pixel": ("RGB", (1, 1), 1),
    "one pixel wide": ("RGB", (1, 19), 1),
    "three pixels": ("RGB", (3, 2), 1),
    **{f"turned, EXIF {way}": ("RGB", (40, 26), way) for way in range(2, 9)},
}
"""Mode, (width, height) as stored, and EXIF orientation."""


def _draw(file: Path, mode: str, size: tuple[int, int], orientation: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Strong colours and no symmetry: swapped channels or a lost turn must show.
    coarse = rng.integers(0, 256, size=(5, 4, 3), dtype=np.uint8)
    coarse[..., 0] //= 2
    coarse[..., 2] = 255 - coarse[..., 2] // 3
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = picture.getexif()
    if orientation != 1:
        exif[0x0112] = orientation
    picture.save(file, quality=92, exif=exif)


@dataclass(frozen=True)
class Shipped:
    """A network, its exported file, its targets, and the bundle's program beside them."""

    network: nn.Module
    card: dict[str, Any]
    folder: Path
    spread: float

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("contract")
    for label, name in enumerate(CLASSES):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(16):
            file = folder / "data" / name / f"{number}.jpg"
            _draw(file, "RGB", (30 + number, 41 - number), 1, seed=100 * label + number)
    settings = ImageFolderSettings(
        name="image_folder", root=str(folder / "data"), image_size=SIZE, test=0.3, validation=0.2
    )
    data = load(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create(ModelSettings(model=TINY), classes=len(CLASSES), channels=3, image_size=SIZE).eval()
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    card = ModelCard(
        role="student",
        model=TINY,
        options={},
        stem="standard",
        classes=data.classes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        best_epoch=1,
        epochs=1,
        val_top1=None,
        preprocessing=data.preprocessing,
    )
    for place in ("weights", "export", "build", "quantize"):
        (folder / place).mkdir()
    save(folder / "weights", network, card)
    inputs = {"train": folder / "weights", "distill": folder / "weights"}
    export.run(
        Context(
            settings=SimpleNamespace(data=settings, export=ExportSettings(parity_images=8)),
            inputs=inputs,
            output=folder / "export",
            work=folder,
        )
    )
    build.run(
        Context(
            settings=SimpleNamespace(
                targets=[TargetSettings(name=name, required=True) for name in TARGETS],
                build=BuildSettings(batch_max=8),
            ),
            inputs={"export": folder / "export", "quantize": folder / "quantize"},
            output=folder / "build",
            work=folder / "work",
        )
    )
    written = json.loads((folder / "export" / "student.json").read_text(encoding="utf-8"))
    _lay_out(folder, written)
    test = data.test.images.batch(np.arange(len(data.test.labels)))
    return Shipped(network, written, folder, float(reference_logits(network, test, written).std()))


def _lay_out(folder: Path, card: dict[str, Any]) -> None:
    """What `predict.py` reads of a bundle to label an image; package is tested by itself."""
    bundle = folder / "bundle"
    shutil.copytree(folder / "build" / "student", bundle / "models")
    shutil.copyfile(predict.__file__, bundle / "predict.py")
    (bundle / "labels.txt").write_text("\n".join(card["classes"]) + "\n", encoding="utf-8")
    manifest = {
        "default_target": TARGETS[0],
        "input": card["input"],
        "preprocessing": card["preprocessing"],
        "targets": {
            name: {"runtime": registry.target_parts(name)[0], "precision": "fp32", "batch_max": 8}
            for name in TARGETS
        },
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _program(bundle: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("predict_of_the_bundle", bundle / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", list(JPEGS))
def test_every_way_gives_the_same_logits(kind: str, shipped: Shipped, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    _draw(file, *JPEGS[kind], seed=7)
    facts = shipped.card["preprocessing"]
    pixels = decode(file, ImageFormat(facts["image_size"], facts["channels"], facts["resize"]))[np.newaxis]
    expected = reference_logits(shipped.network, pixels, shipped.card)
    outputs: dict[str, np.ndarray] = {}

    session = onnxruntime.InferenceSession(
        str(shipped.folder / "export" / "student.onnx"), providers=["CPUExecutionProvider"]
    )
    outputs["the exported file"] = session.run(["logits"], {"input": feed(pixels, shipped.card)})[0]
    program = _program(shipped.bundle)
    manifest = json.loads((shipped.bundle / "manifest.json").read_text(encoding="utf-8"))
    decoded = program.read_images(file, manifest["preprocessing"])
    np.testing.assert_array_equal(decoded, pixels)
    source = Source(
        onnx=shipped.folder / "export" / "student.onnx",
        precision="fp32",
        image_shape=(SIZE, SIZE, 3),
        input=shipped.card["input"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )
    for name in TARGETS:
        runtime = registry.check_target(name)
        outputs[name] = runtime.load(shipped.folder / "build" / "student" / name, source, 1).logits(pixels)
        outputs[f"predict.py with {name}"] = program.run(manifest, name, decoded, 1)
    for way, logits in outputs.items():
        difference = float(np.abs(logits - expected).max()) / shipped.spread
        assert difference < TOLERANCE, f"{way}: {difference:.3g} of the logits' standard deviation"


def test_the_ways_would_not_agree_on_other_pixels(shipped: Shipped, tmp_path: Path) -> None:
    """The test above can fail: swapped channels and a turn that was lost give other logits."""
    file = tmp_path / "image.jpg"
    _draw(file, "RGB", (40, 26), 6, seed=7)
    pixels = decode(file, ImageFormat(SIZE, 3, "bilinear"))[np.newaxis]
    expected = reference_logits(shipped.network, pixels, shipped.card)
    for wrong in (pixels[..., ::-1], np.rot90(pixels, axes=(1, 2))):
        outputs = reference_logits(shipped.network, np.ascontiguousarray(wrong), shipped.card)
        assert np.abs(outputs - expected).max() > 10 * TOLERANCE * shipped.spread


def test_on_the_device_one_line_labels_a_jpeg(shipped: Shipped, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    _draw(file, "RGB", (301, 207), 6, seed=7)
    pixels = decode(file, ImageFormat(SIZE, 3, "bilinear"))[np.newaxis]
    expected = CLASSES[int(reference_logits(shipped.network, pixels, shipped.card).argmax())]
    finished = subprocess.run(
        [sys.executable, "-I", "predict.py", str(file)],
        cwd=shipped.bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"{file}: {expected} ")
    assert finished.stdout.count("\n") == 1
