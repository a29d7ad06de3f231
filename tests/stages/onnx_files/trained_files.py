"""The artefacts of export and quantize for a small trained teacher and student, made once a session."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.stage import Context, Metrics
from stages import export, quantize
from stages.quantizing.settings import QuantizeSettings
from stages.runtimes.settings import TargetSettings
from tests.stages.onnx_files.trained import MOBILENET, TINY, artefact, digits_settings, export_context, folder

BOTH = ("onnxruntime-int8", "tensorrt_rtx-int8")


@dataclass
class Notes:
    """A progress reporter that remembers what it was told."""

    notes: list[str] = field(default_factory=list)

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        assert 0 <= done <= total

    def note(self, text: str) -> None:
        self.notes.append(text)


@functools.cache
def exported(preprocessing: bool = True) -> Path:
    """The student is a MobileNet, the teacher a small CNN; in the plain form both are the CNN."""
    output = folder()
    student = artefact(MOBILENET if preprocessing else TINY)
    export.run(export_context(output, artefact(TINY), student, preprocessing=preprocessing))
    return output


@functools.cache
def exported_cnn() -> Path:
    """A folder like exported(), with the small CNN as the student."""
    output = folder()
    for suffix in (".onnx", ".json"):
        (output / f"student{suffix}").write_bytes((exported() / f"teacher{suffix}").read_bytes())
    return output


def quantize_context(
    source: Path, targets: tuple[str, ...] = BOTH, notes: Notes | None = None, **settings: Any
) -> Context:
    """What the engine would hand to the stage quantize: one way to calibrate, no look at layers and no
    fine-tune, unless the test says so."""
    quick: dict[str, Any] = {"images": 64, "holdout": 64, "method": "moving_average"}
    quick |= {"sensitivity": "never", "distill": {"when": "never"}}
    return Context(
        settings=SimpleNamespace(
            data=digits_settings(),
            quantize=QuantizeSettings(**{**quick, **settings}),
            targets=[TargetSettings(name=name) for name in targets],
        ),
        inputs={"export": source},
        output=folder(),
        work=folder(),
        progress=notes or Notes(),
    )


@functools.cache
def quantized(source: Path) -> tuple[Path, Metrics]:
    context = quantize_context(source)
    return context.output, quantize.run(context)
