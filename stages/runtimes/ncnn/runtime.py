"""ncnn on the CPU: small, made for phones and boards. Light until something is built or loaded.

A target is ncnn's pair of files for one normalised image; the preprocessing is done by whoever runs it,
in ncnn's own pixel functions. pnnx converts in a process of its own, and what it wrote is loaded and run
in another one before anybody else loads it: a network with a layer that ncnn does not have crashes the
process that ignores the return code of loading it.
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
"""What ncnn's pixel functions take: grey or RGB."""


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
        return self._ability("ncnn", "pnnx")

    def ability_to_run(self) -> Ability:
        return self._ability("ncnn")

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Writes `model.param` and `model.bin`: weights as in the source, or for fp16 in half the size.

        Raises StageError with the one layer that ncnn does not have, or with pnnx's own words.
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
        network = ncnn_convert.network_alone(source)
        unknown = ncnn_convert.convert(network, source, output, work)
        fault = ncnn_trial.run_once(output, source)
        if fault:
            raise _refused(source, unknown or fault)
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
