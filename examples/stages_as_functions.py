"""Call stages as plain functions: train a teacher, distill a student, export both to ONNX.

    python examples/stages_as_functions.py [FOLDER]

A stage is a function `run(context)`. It reads its settings and the folders of its inputs, writes into an
empty folder and returns its metrics. It needs neither a store nor the command line, and nothing is cached.
The artefacts are written to FOLDER (default: `artefacts`), which must not exist. On two cores it takes about
half a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.profile.loading import LoadedProfile, load
from pipeline.stage import Context, Metrics
from stages import STAGES, distill, export, train

SETTINGS = (
    "data.image_size=16",
    "teacher={model: test_resnet}",
    "student={model: test_efficientnet}",
    "train.epochs=2",
    "distill.epochs=2",
    "distill.baseline=false",
    "distill.methods=[{name: kd, temperature: 2}]",
    "export.parity_images=16",
)
"""Values that replace those of the profile, as after `--set`: small networks and few epochs."""


def run_stage(
    function: Callable[[Context], Metrics], profile: LoadedProfile, folder: Path, inputs: Sequence[str] = ()
) -> Metrics:
    """Run one stage.

    Args:
        function: The stage's function.
        profile: The profile with the settings.
        folder: Where every stage has its folder.
        inputs: The stages whose artefacts it reads.

    Returns:
        The stage's metrics.
    """
    name = function.__module__.removeprefix("stages.")
    sections = next(stage.reads for stage in STAGES if stage.name == name)
    output, work = folder / name, folder / f"{name}.work"
    output.mkdir(parents=True)
    work.mkdir()
    context = Context(
        settings=profile.settings(sections),
        inputs={source: folder / source for source in inputs},
        output=output,
        work=work,
    )
    return function(context)


def main(folder: Path) -> None:
    """Run three stages and print the main figures."""
    profile = load("resnet_to_mobilenet", SETTINGS)

    metrics = run_stage(train.run, profile, folder)
    print(
        f"teacher: {metrics['val_top1']:.1f} % of the validation images, {metrics['parameters']:,} parameters"
    )

    metrics = run_stage(distill.run, profile, folder, inputs=["train"])
    print(
        f"student: {metrics['val_top1']:.1f} % of the validation images, {metrics['parameters']:,} parameters"
    )

    run_stage(export.run, profile, folder, inputs=["train", "distill"])
    for file in sorted((folder / "export").glob("*.onnx")):
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "artefacts"))
