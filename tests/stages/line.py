"""The whole line on tiny settings, stage by stage, without the engine: what the tests of the later
stages stand on. Real digits, real training, real runtimes; a small teacher and a small student."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.running.key_facts import stage_for_sections
from pipeline.stage import Context, Metrics, StageRecord
from stages import STAGES
from stages.settings import ProfileBase, profile_model

TINY: dict[str, Any] = {
    "name": "tiny",
    "compute": {"device": "cpu", "precision": "fp32", "threads": 2},
    "data": {"name": "digits", "image_size": 16, "validation": 0.15, "test": 0.3},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_efficientnet"},
    "train": {"epochs": 4, "batch_size": 64, "learning_rate": 0.005},
    "distill": {
        "epochs": 4,
        "batch_size": 64,
        "learning_rate": 0.005,
        "baseline": True,
        "methods": [{"name": "msdcrd"}, {"name": "kd"}],
    },
    "export": {"parity_images": 16},
    "quantize": {"images": 32, "holdout": 64, "sensitivity_images": 16},
    "targets": ["onnxruntime-fp32", "onnxruntime-int8", "tensorrt-fp16"],
    "measure": {
        "batch_sizes": [1, 4],
        "threads": [1],
        "warmup_s": 0.02,
        "duration_s": 0.1,
        "max_duration_s": 0.3,
        "min_samples": 20,
        "resamples": 200,
        "compare_s": 0.1,
        "compare_rounds": 4,
        "arrival_rates": [100.0],
        "arrivals_s": 0.3,
        "golden_images": 12,
    },
}
"""A profile that goes through every stage in well under a minute."""


@dataclass
class Notes:
    """Keeps what a stage said."""

    notes: list[str] = field(default_factory=list)

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Line:
    """A folder with the artefacts of the stages that have been run."""

    folder: Path
    profile: ProfileBase
    metrics: dict[str, Metrics] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, *names: str) -> Line:
        for name in names:
            self.metrics[name] = self.stage(name, self.folder / name)
        return self

    def stage(self, name: str, output: Path) -> Metrics:
        """Runs one stage on the artefacts in this line's folder into `output`."""
        declared = next(stage for stage in STAGES if stage.name == name)
        spec = stage_for_sections(declared, self.profile.model_dump(mode="json"))
        output.mkdir(parents=True)
        work = output.with_name(f"{output.name}.work")
        work.mkdir(exist_ok=True)
        told = Notes(self.notes)
        context = Context(
            settings=SimpleNamespace(**{section: getattr(self.profile, section) for section in spec.reads}),
            inputs={source: self.folder / source for source in spec.inputs},
            output=output,
            work=work,
            progress=told,
            history=tuple(
                StageRecord(done, "ran", 1.5, "0" * 64, metrics) for done, metrics in self.metrics.items()
            ),
        )
        metrics: Metrics = importlib.import_module(spec.module).run(context)
        return metrics


def profile(**changes: Any) -> ProfileBase:
    """The tiny profile with sections merged in: `profile(measure={"duration_s": 1})`."""
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    return profile_model().model_validate(raw)


def stages_until(last: str) -> Iterable[str]:
    names = [stage.name for stage in STAGES]
    return names[: names.index(last) + 1]
