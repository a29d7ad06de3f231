"""Sessions of ncnn. Every return code is checked: continuing after a failure crashes the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.images import as_input
from stages.runtimes.ncnn.convert import PARAM, WEIGHTS

INPUT, LOGITS = "in0", "out0"
"""pnnx's names of the input and the output."""

PIXELS = {1: ncnn.Mat.PixelType.PIXEL_GRAY, 3: ncnn.Mat.PixelType.PIXEL_RGB}


class NcnnSession:
    """One loaded network. ncnn takes one image at a time: a batch is a loop.

    For a file with the preprocessing inside, `timed` covers the same work: from uint8 pixels to logits.

    Attributes:
        facts: `effective_precision`, `arithmetic`, `storage`, `device`, `threads`, `batches`.

    Raises:
        StageError: see `open_network`.
    """

    def __init__(self, folder: Path, source: Source, threads: int) -> None:
        self._network = open_network(folder, source.precision, threads)
        self._source = source
        mean, std = np.asarray(source.mean, np.float64), np.asarray(source.std, np.float64)
        self._mean = [float(value) for value in 255.0 * mean]
        self._gain = [float(value) for value in 1.0 / (255.0 * std)]
        half = source.precision == "fp16"
        arithmetic = "fp16" if half and ncnn.cpu_support_arm_asimdhp() else "fp32"
        self.facts: dict[str, Any] = {
            "effective_precision": "fp16+fp32" if half and arithmetic == "fp32" else source.precision,
            "arithmetic": arithmetic,
            "storage": source.precision,
            "device": "CPU",
            "threads": threads,
            "batches": "one image at a time",
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        return np.stack([infer(self._network, self._normalised(image)) for image in images])

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs these images, one after the other."""
        if self._source.input == "uint8_nhwc":
            pixels = list(np.ascontiguousarray(images))

            def from_pixels() -> None:
                for image in pixels:
                    infer(self._network, self._normalised(image))

            return from_pixels
        inputs = [as_mat(image) for image in as_input(images, self._source)]

        def from_input() -> None:
            for image in inputs:
                infer(self._network, image)

        return from_input

    def _normalised(self, image: np.ndarray) -> ncnn.Mat:
        """Return an image, uint8 (H, W, C), in ncnn's layout (C, H, W), scaled and normalised."""
        height, width, channels = image.shape
        mat = ncnn.Mat.from_pixels(np.ascontiguousarray(image), PIXELS[channels], width, height)
        mat.substract_mean_normalize(self._mean, self._gain)
        return mat


def open_network(folder: Path, precision: str, threads: int) -> ncnn.Net:
    """Load the network of a target.

    Args:
        folder: with its two files.
        precision: fp32 or fp16.
        threads: of one inference.

    Raises:
        StageError: ncnn refuses a file, or it is not a target of kdpipe.
    """
    network = ncnn.Net()
    half = precision == "fp16"
    network.opt.num_threads = threads
    network.opt.use_fp16_packed = half
    network.opt.use_fp16_storage = half
    network.opt.use_fp16_arithmetic = half
    network.opt.use_bf16_storage = False
    for file, load in ((PARAM, network.load_param), (WEIGHTS, network.load_model)):
        code = load(str(folder / file)) if (folder / file).is_file() else "none: the file is missing"
        if code != 0:
            raise StageError(
                "ncnn cannot load a built target",
                where=f"{folder.name}/{file}",
                why=f"ncnn's return code is {code}",
                hint="kdpipe build PROFILE",
            )
    if [*network.input_names()] != [INPUT] or LOGITS not in network.output_names():
        raise StageError(
            "this is not a target of kdpipe",
            where=f"{folder.name}/{PARAM}",
            why=f"found inputs {network.input_names()} and outputs {network.output_names()}, "
            f"expected {INPUT} and {LOGITS}",
            hint="kdpipe build PROFILE",
        )
    return network


def as_mat(image: np.ndarray) -> ncnn.Mat:
    """Copy an image, float32 (C, H, W), into ncnn's memory; `Mat(array)` would not keep the array alive."""
    return ncnn.Mat(image).clone()


def infer(network: ncnn.Net, image: ncnn.Mat) -> np.ndarray:
    """Return the logits, float32 (classes,), of one normalised image.

    Raises:
        StageError: ncnn could not compute them.
    """
    extractor = network.create_extractor()
    code = extractor.input(INPUT, image)
    if code == 0:
        code, logits = extractor.extract(LOGITS)
    if code != 0:
        raise StageError(
            "ncnn could not run a built target",
            why=f"ncnn's return code is {code}; the memory may be too small",
            hint="kdpipe build PROFILE",
        )
    return np.array(logits, np.float32).reshape(-1)
