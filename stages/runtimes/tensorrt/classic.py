"""TensorRT, the classic SDK: engines for exactly this GPU. Light until something is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import family as tensorrt_family

if TYPE_CHECKING:
    from stages.runtimes.tensorrt.session import TensorRtSession

INSTALL = "pip install 'kdpipe[tensorrt]'"


class TensorRt:
    """Builds and runs targets `tensorrt-fp32`, `-fp16`, `-bf16` and `-int8`."""

    name = "tensorrt"
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")
    not_offered: dict[str, str] = {}  # noqa: RUF012 - never changed
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["tensorrt"]

    def ability_to_build(self) -> Ability:
        """Return whether the package builds engines here."""
        return tensorrt_family.ability(self.name, INSTALL, to_run=False, builds_on_gpu=True)

    def ability_to_run(self) -> Ability:
        """Return whether the package runs engines here."""
        return tensorrt_family.ability(self.name, INSTALL, to_run=True, builds_on_gpu=True)

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Write `model.engine` and `engine.json`; see `stages.runtimes.tensorrt.family.build`."""
        facts = tensorrt_family.build(self.name, source, output, settings, progress, work, keeps_timings=True)
        return {**facts, "portable": _portable(settings)}

    def load(
        self,
        folder: Path,
        source: Source,
        threads: int,  # noqa: ARG002 - the interface passes it
    ) -> TensorRtSession:
        """Load the engine on the GPU."""
        from stages.runtimes.tensorrt.session import TensorRtSession

        return TensorRtSession(self.name, folder, source)


def _portable(settings: BuildSettings) -> str:
    gpus = {
        "none": "this GPU model",
        "same_compute_capability": "GPUs of this compute capability",
        "ampere_plus": "GPUs from Ampere on",
    }[settings.hardware_compatible]
    later = "this TensorRT version and later ones of its major" if settings.version_compatible else ""
    return f"{gpus} and {later or 'exactly this TensorRT version'}"


RUNTIME = TensorRt()
