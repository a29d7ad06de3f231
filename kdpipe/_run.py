"""A run: its stages, and what they left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdpipe import _html
from kdpipe._scorecard import Scorecard, interval
from kdpipe._stages import StageResult, reasons_in_short
from pipeline.console.tables import duration, table
from pipeline.errors import EXIT_DONE, GateMissed, KdpipeError, MachineCannot, UsageError

if TYPE_CHECKING:
    import os

    import numpy
    from torch import Tensor, nn

    from stages.data.preprocessing import Preprocessing

Network = Literal["student", "teacher", "baseline"]

_HEADER = ("stage", "status", "seconds", "why")
_STATUS = {"hit": "cached", "not_built": "not built"}


@dataclass(frozen=True)
class Gate:
    """The judgement of one gate on one target.

    Attributes:
        metric: What is limited, such as `accuracy_drop`.
        target: The target that was judged.
        status: `passed`; `missed`: the whole interval is beyond the limit; or `undecided`.
        limit: The limit.
        direction: Whether the limit is a `max` or a `min`.
        unit: The unit of limit and value.
        value: What was measured; None if it was not measured.
        interval: 95 % interval of the value; None if the value is exact.
        message: The judgement in one sentence.
        details: Every field, as in `gates.json`.
    """

    metric: str
    target: str
    status: Literal["passed", "missed", "undecided"]
    limit: float
    direction: Literal["min", "max"]
    unit: str
    value: float | None
    interval: tuple[float, float] | None
    message: str
    details: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Pick:
    """The target to ship, and why.

    Attributes:
        target: The target; None if no target may ship.
        reason: Why this target, or why none.
        rejected: By target, why no other.
        unmeasured: By target, why it was not compared.
        undecided: The undecided gates of the target, a sentence each.
    """

    target: str | None
    reason: str
    rejected: Mapping[str, str]
    unmeasured: Mapping[str, str]
    undecided: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Run:
    """The result of `kdpipe.run`.

    The properties read the artefacts when they are used. Each raises UsageError if the run has no artefact of
    the stage that it reads, for example because it stopped after an earlier stage.

    Attributes:
        profile: The profile's file.
        store: The folder of the artefacts.
        stages: The stages in order.
        error: The error of a run that is complete but missed a gate or lacks a required target, and the error
            that ended a run early; None if the run succeeded.
    """

    profile: Path
    store: Path
    stages: tuple[StageResult, ...]
    error: KdpipeError | None = None

    @property
    def exit_code(self) -> int:
        """The exit code that `kdpipe run` would have: 0 done, 3 a gate was missed, and so on."""
        return EXIT_DONE if self.error is None else self.error.exit_code

    @property
    def is_complete(self) -> bool:
        """Whether every stage has its artefact, even if a gate was missed or a target is missing."""
        has_artefacts = bool(self.stages) and all(stage.path is not None for stage in self.stages)
        return has_artefacts and (self.error is None or isinstance(self.error, GateMissed | MachineCannot))

    def raise_for_result(self) -> None:
        """Raise the error of the run, if it has one.

        Raises:
            KdpipeError: A gate was missed, a required target could not be built, or a stage failed.
        """
        if self.error is not None:
            raise self.error

    def stage(self, name: str) -> StageResult:
        """Return a stage by its name.

        Raises:
            KeyError: The run has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def artefact(self, name: str) -> Path:
        """Return the folder of a stage's artefact. Its files are read-only.

        Raises:
            UsageError: The run has no artefact of this stage.
        """
        for stage in self.stages:
            if stage.name == name and stage.path is not None:
                return stage.path
        ready = [stage.name for stage in self.stages if stage.path is not None]
        raise UsageError(
            f"The run has no artefact of stage {name}",
            where=f"run of {self.profile}",
            why=f"it has artefacts of {', '.join(ready) or 'no stage'}",
            hint=f"kdpipe.run({str(self.profile)!r}, until={name!r})",
        )

    @cached_property
    def scorecard(self) -> Scorecard:
        """What was measured of every target."""
        return Scorecard.from_document(_read(self.artefact("measure") / "scorecard.json"))

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The evaluation of teacher, student and baseline in PyTorch: the content of `metrics.json`."""
        return _read(self.artefact("evaluate") / "metrics.json")

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """The judgements of all gates, one for each gate and target."""
        return tuple(_gate(judgement) for judgement in self._gates["judgements"])

    @cached_property
    def pick(self) -> Pick:
        """The target to ship under the gates, and why."""
        pick = self._gates["pick"]
        return Pick(
            target=pick["target"],
            reason=pick["reason"],
            rejected={entry["target"]: entry["why"] for entry in pick["rejected"]},
            unmeasured={entry["target"]: entry["why"] for entry in pick["unmeasured"]},
            undecided=tuple(pick["undecided"]),
        )

    @property
    def report(self) -> Path:
        """The report, a self-contained HTML page."""
        return self.artefact("report") / "report.html"

    @property
    def bundle(self) -> Path:
        """The archive to ship, `NAME.tar.zst`. The folder `bundle` beside it has the same content."""
        return next(self.artefact("package").glob("*.tar.zst"))

    @property
    def onnx(self) -> Mapping[str, Path]:
        """The ONNX files by name: `student`, `teacher`, and quantized files such as `student.int8.x86`."""
        folders = [self.artefact("export")]
        folders += [
            stage.path for stage in self.stages if stage.name == "quantize" and stage.path is not None
        ]
        return {file.name.removesuffix(".onnx"): file for folder in folders for file in _onnx_files(folder)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(_read(self._network_folder("student") / "model.json")["classes"])

    def student(self) -> nn.Module:
        """Return the student as a torch module in eval mode on the CPU, with the weights that ship.

        It takes what `preprocess` returns, float32 (N, channels, side, side), and returns logits
        float32 (N, classes). An INT8 target ships these weights quantized.
        """
        return self._network("student")

    def teacher(self) -> nn.Module:
        """Return the teacher as a torch module in eval mode on the CPU.

        It takes what `preprocess(images, "teacher")` returns.
        """
        return self._network("teacher")

    def baseline(self) -> nn.Module:
        """Return the student that was trained alone, if the profile has `distill.baseline`.

        Raises:
            UsageError: The profile has no baseline.
        """
        return self._network("baseline")

    def preprocessing(self, network: Network = "student") -> Preprocessing:
        """Return size, channels, mean and standard deviation of a network's input."""
        from stages.data.preprocessing import Preprocessing

        return Preprocessing.from_json(_read(self._network_folder(network) / "model.json")["preprocessing"])

    def preprocess(
        self,
        images: Sequence[str | os.PathLike[str] | numpy.ndarray] | numpy.ndarray,
        network: Network = "student",
    ) -> Tensor:
        """Bring images to the form that a network takes, as in training and on the device.

        Args:
            images: Image files, or uint8 arrays (H, W), (H, W, 1) or (H, W, 3), of any size.
            network: The network that will take them. A teacher may have constants and a size of its own.

        Returns:
            float32 (N, channels, side, side), normalised.

        Raises:
            DataError: An image cannot be read.
        """
        from kdpipe import _networks

        return _networks.preprocess(images, self.preprocessing(network))

    def __repr__(self) -> str:
        """Return the run in one line."""
        ran = sum(stage.status == "ran" for stage in self.stages)
        cached = sum(stage.status == "hit" for stage in self.stages)
        ending = f", {type(self.error).__name__}" if self.error else ""
        return f"<kdpipe.Run {self.profile.name}: {ran} stages ran, {cached} cached{ending}>"

    def __str__(self) -> str:
        """Return the stages, the scorecard and the target to ship as text."""
        parts = [table(_HEADER, self._cells(), "llrl")]
        if self._has("measure"):
            parts.append(repr(self.scorecard))
        sentences = "\n".join(self._sentences())
        return "\n\n".join([*parts, sentences] if sentences else parts)

    def _repr_html_(self) -> str:
        parts = [_html.table(_HEADER, self._cells())]
        if self._has("measure"):
            parts.append(self.scorecard._repr_html_())
        return "".join([*parts, *(_html.paragraph(text) for text in self._sentences())])

    def _sentences(self) -> list[str]:
        sentences = (
            [gate.message for gate in self.gates if gate.status != "passed"] if self._has("gate") else []
        )
        if self._has("gate"):
            sentences.append(f"ship: {self.pick.target or 'none'}: {self.pick.reason}")
        if self.error is not None:
            sentences.append(f"error: {self.error.what}")
        return sentences

    def _cells(self) -> list[list[str]]:
        return [
            [
                stage.name,
                _STATUS.get(stage.status, stage.status),
                duration(stage.seconds) if stage.seconds else "",
                reasons_in_short(stage.reasons),
            ]
            for stage in self.stages
        ]

    def _has(self, name: str) -> bool:
        return any(stage.name == name and stage.path is not None for stage in self.stages)

    @cached_property
    def _gates(self) -> dict[str, Any]:
        return _read(self.artefact("gate") / "gates.json")

    def _network(self, network: Network) -> nn.Module:
        from kdpipe import _networks

        return _networks.load(self._network_folder(network))

    def _network_folder(self, network: Network) -> Path:
        if network == "teacher":
            return self.artefact("train")
        if network == "student":
            return self.artefact("distill")
        if network != "baseline":
            raise UsageError(f"There is no network {network!r}", hint="student, teacher or baseline")
        folder = self.artefact("distill") / "baseline"
        if not folder.is_dir():
            raise UsageError(
                "The run has no baseline",
                where=f"run of {self.profile}",
                why="the student was not trained alone",
                hint='set={"distill.baseline": True}',
            )
        return folder


def _gate(judgement: Mapping[str, Any]) -> Gate:
    return Gate(
        metric=judgement["metric"],
        target=judgement["target"],
        status=judgement["status"],
        limit=judgement["limit"],
        direction=judgement["direction"],
        unit=judgement["unit"],
        value=judgement["value"],
        interval=interval(judgement["interval"]),
        message=judgement["said"],
        details=dict(judgement),
    )


def _onnx_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx"))


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document
