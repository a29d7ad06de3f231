"""The interface of a runtime: can it be had here, build a target, load it, run it.

A third party adds a runtime through an entry point of the group `kdpipe.runtimes` whose name is
the runtime's and whose value names an object of this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.stage import Progress

if TYPE_CHECKING:
    import numpy as np

    from stages.runtimes.settings import BuildSettings

Recipe = Literal["x86", "signed"]
"""Which INT8 file a runtime wants: unsigned activations, or signed and symmetric."""


@dataclass(frozen=True)
class Ability:
    """Whether this machine can do a thing; if not, why in one sentence, and the command that fixes it."""

    can: bool
    why_not: str = ""
    hint: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What a target is built from.

    onnx: the float file, or for precision int8 the quantized file of the runtime's recipe.
    precision: fp32, fp16, bf16 or int8.
    image_shape: (H, W, C) of one image.
    input: how the file takes images.
    mean, std: per channel on the 0..1 scale, for a plain graph (`float32_nchw`).
    images: real images to prove the target on, an .npy file of uint8 (n, H, W, C); None: there are none.
    """

    onnx: Path
    precision: str
    image_shape: tuple[int, int, int]
    input: Literal["uint8_nhwc", "float32_nchw"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: Path | None = None


class Session(Protocol):
    """A loaded target, ready to run on this machine."""

    facts: dict[str, Any]
    """What is in force: `effective_precision`, `provider` or `device`, `threads`; JSON-ready."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, C) -> float32 (n, classes); any n the target takes."""

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """A call that runs exactly one inference on these images, inputs and outputs bound
        beforehand as far as the runtime allows; it returns when the result is there, in the
        host's memory. All of the file's outputs are computed. For a plain graph (`float32_nchw`)
        the images are normalised beforehand, so that is not part of the time."""


class Runtime(Protocol):
    """What builds and executes targets. Importing the module imports nothing heavy."""

    name: str
    precisions: tuple[str, ...]
    not_offered: Mapping[str, str]
    """Why a precision is missing from `precisions`, one sentence each."""
    recipe: Recipe
    distributions: tuple[str, ...]
    """Python distributions whose versions count for what is built (part of the artefact's key)."""

    def ability_to_build(self) -> Ability: ...

    def ability_to_run(self) -> Ability: ...

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Writes the target's files into the empty folder `output`, returns the builder's facts.

        work: a folder that all targets of one build share and that survives a kill, for what makes
            building again faster (TensorRT's timings); nothing in it ships.

        The facts are JSON-ready and equal for equal work: no times, hosts or paths.
        Raises StageError with the builder's own messages if the file is refused, MachineCannot if
        this machine has not what this precision needs.
        """

    def load(self, folder: Path, source: Source, threads: int) -> Session:
        """Loads what `build` wrote. `source.onnx` need not exist any more.

        threads: CPU threads of one inference; a GPU's runtime ignores it.
        Raises StageError if the file is damaged or was built for another device or version.
        """
