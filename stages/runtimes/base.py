"""The interface of a runtime: whether it works here, and how it builds, loads and runs a target.

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
"""Which INT8 file a runtime needs: unsigned activations, or signed and symmetric."""


@dataclass(frozen=True)
class Ability:
    """Whether this machine can build or run a runtime's targets.

    Attributes:
        can: whether it can.
        why_not: if not, the reason in one sentence.
        hint: the command that fixes it.
        versions: of the packages, by distribution.
    """

    can: bool
    why_not: str = ""
    hint: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The file that a target is built from, and how it is fed.

    Attributes:
        onnx: the float file, or for precision int8 the quantized file of the runtime's recipe.
        precision: fp32, fp16, bf16 or int8.
        image_shape: (H, W, C) of one image.
        input: how the file takes images.
        mean: per channel on the 0..1 scale, for a plain graph (`float32_nchw`).
        std: the same.
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
    """A loaded target, ready to run on this machine.

    Attributes:
        facts: what is in force: `effective_precision`, `provider` or `device`, `threads`; JSON-ready.
    """

    facts: dict[str, Any]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of images.

        Args:
            images: uint8 (n, H, W, C); any n that the target takes.

        Returns:
            float32 (n, classes).
        """

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs exactly one inference on these images.

        Inputs and outputs are bound beforehand as far as the runtime allows. The call returns when the result
        is in the host's memory. All of the file's outputs are computed. For a plain graph (`float32_nchw`)
        the images are normalised beforehand, so that is not part of the time.
        """


class Runtime(Protocol):
    """Builds and executes targets. Importing the module imports nothing heavy.

    Attributes:
        name: the part of a target's name before the precision.
        precisions: those that it offers.
        not_offered: why a precision is missing from `precisions`, one sentence each.
        recipe: of the INT8 file.
        distributions: Python distributions whose versions count for the built files (part of the key).
    """

    name: str
    precisions: tuple[str, ...]
    not_offered: Mapping[str, str]
    recipe: Recipe
    distributions: tuple[str, ...]

    def ability_to_build(self) -> Ability:
        """Return whether this machine can build the runtime's targets."""

    def ability_to_run(self) -> Ability:
        """Return whether this machine can run them."""

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Write the target's files.

        Args:
            source: the file to build from.
            output: an empty folder for the target's files.
            settings: the profile's section `build`.
            progress: takes the progress.
            work: a folder that all targets of one build share and that survives a kill, for files that make
                building again faster (TensorRT's timings); nothing in it ships.

        Returns:
            The builder's facts: JSON-ready and equal for equal work, without times, hosts or paths.

        Raises:
            StageError: the file is refused; with the builder's own messages.
            MachineCannot: this machine lacks what this precision needs.
        """

    def load(self, folder: Path, source: Source, threads: int) -> Session:
        """Load the files that `build` wrote.

        Args:
            folder: where they are.
            source: what they were built from; `source.onnx` need not exist any more.
            threads: CPU threads of one inference; a GPU's runtime ignores it.

        Raises:
            StageError: the file is damaged, or was built for another device or version.
        """
