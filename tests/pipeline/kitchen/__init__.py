"""A small pipeline of real stages for the engine's tests: a table, a profile, a listener.

gather reads data and a file; refine makes something of it, coarsely enough that different settings
can come out the same; judge depends on the machine; tell is given the history.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.running.plan import Decision
from pipeline.running.runner import StageResult
from pipeline.stage import Progress, Silent, Stage

STAGES: tuple[Stage, ...] = (
    Stage(
        name="gather",
        summary="Gather numbers.",
        module="tests.pipeline.kitchen.gather",
        version=1,
        inputs=(),
        reads=("data", "gather"),
        data=True,
        files=("gather.recipe",),
    ),
    Stage(
        name="refine",
        summary="Refine what was gathered.",
        module="tests.pipeline.kitchen.refine",
        version=1,
        inputs=("gather",),
        reads=("seed", "refine"),
    ),
    Stage(
        name="aside",
        summary="Needed by nobody.",
        module="tests.pipeline.kitchen.aside",
        version=1,
        inputs=("gather",),
        reads=("aside",),
    ),
    Stage(
        name="judge",
        summary="Judge both.",
        module="tests.pipeline.kitchen.judge",
        version=1,
        inputs=("gather", "refine"),
        reads=("judge",),
        machine="tests.pipeline.kitchen.machine:machine",
    ),
    Stage(
        name="tell",
        summary="Tell the history.",
        module="tests.pipeline.kitchen.tell",
        version=1,
        inputs=("refine", "judge"),
        reads=("name",),
        reads_history=True,
    ),
)
NAMES = tuple(stage.name for stage in STAGES)

UNKEYED = ("data.root", "gather.recipe", "gather.trace", "refine.trace", "refine.pause_s", "refine.fault")


def sections(folder: Path) -> dict[str, Any]:
    """A profile's sections, with real data below `folder`."""
    data = folder / "data"
    if not data.exists():
        data.mkdir(parents=True)
        (data / "train.npz").write_bytes(b"1 2 3 4")
    return {
        "name": "small",
        "seed": 7,
        "data": {"name": "npz", "root": str(data), "classes": None, "image_size": 8},
        "gather": {"scale": 10, "recipe": None, "trace": str(folder / "trace.txt")},
        "refine": {
            "rounds": 4,
            "steps": [{"name": "mix", "weight": 1.0}],
            "trace": str(folder / "trace.txt"),
            "pause_s": 0.0,
            "fault": None,
        },
        "aside": {"text": "x"},
        "judge": {"limit": 0.5, "machine": "here", "cannot": []},
    }


@dataclass(frozen=True)
class SmallProfile:
    """What the engine asks of a profile, over plain sections."""

    path: Path
    sections: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.sections["name"])

    @property
    def keyed(self) -> dict[str, Any]:
        keyed = copy.deepcopy(dict(self.sections))
        for dotted in UNKEYED:
            section, _, key = dotted.partition(".")
            keyed[section].pop(key)
        return keyed

    def settings(self, names: Iterable[str], /) -> SimpleNamespace:
        return SimpleNamespace(**{name: _attributes(self.sections[name]) for name in names})

    def value(self, dotted: str, /) -> Any:
        found: Any = self.sections
        for key in dotted.split("."):
            found = found[key]
        return found

    def place(self, dotted: str, /) -> str:
        return f"{self.path}:{dotted}"

    def edited(self, **values: Any) -> SmallProfile:
        """`refine__rounds=5` sets refine.rounds."""
        changed = copy.deepcopy(dict(self.sections))
        for name, value in values.items():
            section, _, key = name.partition("__")
            if key:
                changed[section][key] = value
            else:
                changed[section] = value
        return SmallProfile(self.path, changed)

    def save(self) -> Path:
        self.path.write_text(json.dumps(self.sections), encoding="utf-8")
        return self.path


def small_profile(folder: Path, **values: Any) -> SmallProfile:
    return SmallProfile(folder / "small.yaml", sections(folder)).edited(**values)


@dataclass
class Notebook:
    """A listener that keeps what it is told."""

    began: list[str] = field(default_factory=list)
    results: list[StageResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waits: list[tuple[str, str]] = field(default_factory=list)

    def started(self, decision: Decision, /) -> None:
        self.began.append(decision.stage.name)

    def progress(self, stage_name: str, /) -> Progress:
        return Silent()

    def finished(self, result: StageResult, /) -> None:
        self.results.append(result)

    def note(self, text: str, /) -> None:
        self.notes.append(text)

    def waiting(self, stage_name: str, holder_text: str, /) -> None:
        self.waits.append((stage_name, holder_text))


def runs_of(folder: Path) -> list[str]:
    """The stages that gather and refine wrote into their trace, in order."""
    trace = folder / "trace.txt"
    return trace.read_text(encoding="utf-8").split() if trace.exists() else []


def _attributes(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _attributes(entry) for key, entry in value.items()})
    return [_attributes(entry) for entry in value] if isinstance(value, list) else value
