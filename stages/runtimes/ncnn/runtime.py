"""ncnn on the CPU: small, made for phones and boards. Light until something is built or loaded.

A target is ncnn's pair of files for one normalised image; the program that runs it does the preprocessing, in
ncnn's own pixel functions. pnnx converts in a process of its own. Its files are loaded and run in another one
before any other process loads them: a network with a layer that ncnn does not have crashes a process that
ignores the return code of loading it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.machine import installed_versions
from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.ncnn import trial as ncnn_trial
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    from stages.runtimes.ncnn.session import NcnnSession

INSTALL = "pip install 'kdpipe[ncnn]'"
CHANNELS = (1, 3)
"""Channels of the images that ncnn's pixel functions take: grey or RGB."""


class Ncnn:
    """Builds and runs targets `ncnn-fp32` and `ncnn-fp16`."""

    name = "ncnn"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    not_offered = {  # noqa: RUF012 - never changed
        "bf16": "ncnn stores bf16 with a relative error eight times that of fp16, in the same size",
        "int8": "ncnn reads no quantized ONNX file: its INT8 networks come from its own calibration tools",
    }
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["ncnn"]

    def ability_to_build(self) -> Ability:
        """Return whether ncnn and pnnx are installed and ncnn can be imported."""
        return self._ability("ncnn", "pnnx")

    def ability_to_run(self) -> Ability:
        """Return whether ncnn is installed and can be imported."""
        return self._ability("ncnn")

    def build(
        self,
        source: Source,
        output: Path,
        settings: BuildSettings,  # noqa: ARG002 - the interface passes it
        progress: Progress,  # noqa: ARG002 - the interface passes it
        work: Path,
    ) -> dict[str, Any]:
        """Write `model.param` and `model.bin`: weights like in the source, or for fp16 in half the size.

        Raises:
            StageError: ncnn lacks a layer, which it names, or pnnx fails; with its own messages.
        """
        from stages.runtimes.ncnn import convert as ncnn_convert

        channels = source.image_shape[2]
        if channels not in CHANNELS:
            raise StageError(
                "ncnn takes grey or RGB images",
                where=source.onnx.name,
                why=f"found {channels} channels, expected 1 or 3",
                hint="leave the ncnn targets out",
            )
        network = ncnn_convert.network_without_preprocessing(source)
        unconverted = ncnn_convert.convert(network, source, output, work)
        fault = ncnn_trial.run_once(output, source)
        if fault:
            raise _refused(source, unconverted or fault)
        return {
            "layers": ncnn_convert.count_layers(output),
            "weights": source.precision,
            "converter": f"pnnx {installed_versions(['pnnx'])['pnnx']}",
            "batch_max": 1,
            "batches": "one image at a time",
            "preprocessing": "by the program that runs it: mean and std as in the card",
            "portable": "any CPU, this or a later ncnn",
        }

    def load(self, folder: Path, source: Source, threads: int) -> NcnnSession:
        """Load the pair of files with `threads` threads."""
        from stages.runtimes.ncnn.session import NcnnSession

        return NcnnSession(folder, source, threads)

    def _ability(self, *packages: str) -> Ability:
        for package in packages:
            if importlib.util.find_spec(package) is None:
                return Ability(False, f"the {package} package is not installed", INSTALL)
        why_not = ncnn_trial.why_not_importable()
        if why_not:
            return Ability(False, f"the ncnn package cannot be imported: {why_not}", INSTALL)
        return Ability(True, versions=installed_versions(["ncnn"]))


def _refused(source: Source, why: str) -> StageError:
    return StageError(
        "ncnn cannot run this network",
        where=source.onnx.name,
        why=why,
        hint="ncnn is made for convolutional networks: choose another student.model, or leave the ncnn "
        "targets out",
    )


RUNTIME = Ncnn()
