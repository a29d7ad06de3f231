"""TensorRT for RTX: engines built without a GPU, finished on the GPU that runs them.

Light until something is built.
"""

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

INSTALL = "pip install 'kdpipe[rtx]'"


class TensorRtForRtx:
    """Builds and runs targets `tensorrt_rtx-fp32`, `-fp16`, `-bf16` and `-int8`."""

    name = "tensorrt_rtx"
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")
    not_offered: dict[str, str] = {}  # noqa: RUF012 - never changed
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["tensorrt_rtx"]

    def ability_to_build(self) -> Ability:
        """Return whether the package builds engines here."""
        return tensorrt_family.ability(self.name, INSTALL, to_run=False, builds_on_gpu=False)

    def ability_to_run(self) -> Ability:
        """Return whether the package runs engines here."""
        return tensorrt_family.ability(self.name, INSTALL, to_run=True, builds_on_gpu=False)

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Write `model.engine` and `engine.json`; see `stages.runtimes.tensorrt.family.build`."""
        # The package chooses kernels on the GPU at load time. There is nothing to time here, and its timing
        # cache does nothing.
        facts = tensorrt_family.build(
            self.name, source, output, settings, progress, work, keeps_timings=False
        )
        return {**facts, "portable": "GPUs that this version of TensorRT for RTX supports, same version only"}

    def load(
        self,
        folder: Path,
        source: Source,
        threads: int,  # noqa: ARG002 - the interface passes it
    ) -> TensorRtSession:
        """Load the engine on the GPU."""
        from stages.runtimes.tensorrt.session import TensorRtSession

        return TensorRtSession(self.name, folder, source)


RUNTIME = TensorRtForRtx()
