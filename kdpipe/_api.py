"""The functions of the public API."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

from kdpipe import _engine
from kdpipe._comparison import Comparison
from kdpipe._methods import Method, installed_methods
from kdpipe._plan import Plan
from kdpipe._run import Run
from kdpipe._stages import StageResult
from pipeline.errors import UsageError

Path = str | PathLike[str]


def run(
    profile: Path,
    *,
    set: Mapping[str, Any] | None = None,
    store: Path | None = None,
    until: str | None = None,
    force: Sequence[str] = (),
    remote: str | None = None,
    strict: bool = False,
    check: bool = True,
    progress: bool = True,
) -> Run:
    """Bring every stage of a profile up to date, like `kdpipe run`.

    Runs in this process; a second call in another thread waits for the first one. An interrupt keeps the
    finished stages and the checkpoints: the same call continues.

    Args:
        profile: The YAML file, or the name of a profile that comes with kdpipe.
        set: Values that replace those of the profile, by dotted key: `{"distill.epochs": 5}`.
        store: The folder of the artefacts; None for `$KDPIPE_STORE`, else `.kdpipe` in the working folder.
        until: Stop after this stage.
        force: Stages that run even if they are cached.
        remote: URL of a store to pull artefacts from and to push them to, such as `s3://bucket/prefix`.
        strict: Count an undecided gate as missed.
        check: Raise if a gate is missed or a required target cannot be built. With False the run is
            returned, and `Run.error` is that error.
        progress: Print progress on standard error like the command line. False prints nothing.

    Returns:
        The run, with every stage up to date.

    Raises:
        UsageError: The profile, a setting or the data is invalid.
        StageError: A stage failed.
        GateMissed: A gate was missed, and `check` is True.
        MachineCannot: This machine cannot do what the profile requires. If that is to build a target, only
            with `check`.

    The attribute `run` of an error is the run up to it, or None if nothing was started.

    Example:
        >>> run = kdpipe.run("resnet_to_mobilenet", set={"distill.epochs": 5})  # doctest: +SKIP
        >>> run.pick.target  # doctest: +SKIP
        'onnxruntime-int8'
    """
    loaded, opened = _engine.open_profile(profile, set, store)
    outcome = _engine.bring_up_to_date(
        loaded,
        opened,
        until=until,
        force=_names(force, "force"),
        remote=remote,
        strict=strict,
        progress=progress,
    )
    result = Run(
        profile=loaded.path,
        store=opened.root,
        stages=tuple(StageResult.from_document(entry) for entry in outcome.entries),
        error=outcome.error,
    )
    if outcome.error is not None and (check or not result.is_complete):
        outcome.error.run = result if result.stages else None
        raise outcome.error
    return result


def plan(
    profile: Path,
    *,
    set: Mapping[str, Any] | None = None,
    store: Path | None = None,
    until: str | None = None,
    force: Sequence[str] = (),
) -> Plan:
    """Decide for each stage whether it is cached or has to run, and why; change nothing.

    Args:
        profile: The YAML file, or the name of a profile that comes with kdpipe.
        set: Values that replace those of the profile, by dotted key.
        store: The folder of the artefacts, as in `run`.
        until: Stop after this stage.
        force: Stages that run even if they are cached.

    Returns:
        The stages in order.

    Raises:
        UsageError: The profile, a setting or the data is invalid.

    Example:
        >>> [stage.name for stage in kdpipe.plan("resnet_to_mobilenet").stale]  # doctest: +SKIP
        ['train', 'distill', 'evaluate', ...]
    """
    loaded, opened = _engine.open_profile(profile, set, store)
    entries = _engine.planned(loaded, opened, until=until, force=_names(force, "force"))
    return Plan.from_documents(loaded.path, opened.root, entries)


def compare(
    profile: Path,
    *,
    methods: Sequence[str] | Mapping[str, Sequence[str | Mapping[str, Any]]] | None = None,
    seeds: int | Sequence[int] = 3,
    split: Literal["test", "validation"] = "test",
    baseline: bool = True,
    jobs: int = 1,
    set: Mapping[str, Any] | None = None,
    store: Path | None = None,
    check: bool = True,
    progress: bool = True,
) -> Comparison:
    """Train the student by several methods and from several seeds, and judge all of them together.

    The teacher is trained once, and each run of the student is a cached artefact, as in `kdpipe compare`.

    Args:
        profile: The YAML file, or the name of a profile that comes with kdpipe.
        methods: Specifications as after `--methods` (`["kd", "msdcrd+kd", "kd:temperature=2"]`), or a list of
            methods by label (`{"warm": [{"name": "kd", "temperature": 8}]}`). None for the profile's
            methods, kd and msdcrd.
        seeds: How many seeds of the student, counted from the profile's own; or the seeds.
        split: The images to judge on: `validation` to make choices, `test` after they are made.
        baseline: Train the student alone too. Without it the first method is the reference.
        jobs: How many runs to train at once, each in its own process with its share of the cores.
        set: Values that replace those of the profile, by dotted key.
        store: The folder of the artefacts, as in `run`.
        check: Raise if a run failed. With False the comparison of the others is returned.
        progress: Print progress on standard error like the command line. False prints nothing.

    Returns:
        The comparison: a row for each method, every run, and the page with charts.

    Raises:
        UsageError: The profile, a setting, a method or the data is invalid.
        StageError: The teacher or every run failed; or any run, if `check` is True. The attribute
            `comparison` is then the comparison of the others, or None if there is none.

    Example:
        >>> kdpipe.compare("resnet_to_mobilenet", methods=["kd"], seeds=2).answer  # doctest: +SKIP
        'kd is better than the student alone: ...'
    """
    loaded, opened = _engine.open_profile(profile, set, store)
    document, error = _engine.compared(
        loaded,
        opened,
        methods=methods if methods is None or isinstance(methods, Mapping) else _names(methods, "methods"),
        seeds=seeds,
        split=split,
        baseline=baseline,
        jobs=jobs,
        progress=progress,
    )
    result = Comparison.from_document(document)
    if error is not None and check:
        error.comparison = result
        raise error
    return result


def methods() -> list[Method]:
    """List the distillation methods that are built in or installed by other packages.

    Returns:
        The methods in the order of the documentation, each with its summary and its settings.

    Example:
        >>> {method.name: method.summary for method in kdpipe.methods()}["kd"]  # doctest: +SKIP
        'Plain knowledge distillation: temperature-softened logits (Hinton et al., 2015).'
    """
    return installed_methods()


def _names(names: Sequence[str], argument: str) -> builtins.tuple[str, ...]:
    """Return the names as a tuple; a single string is an easy mistake, and would be read as letters."""
    if isinstance(names, str):
        raise UsageError(
            f"{argument} is a string, not a list of strings",
            where=f"argument {argument}",
            why=f"found {names!r}",
            hint=f"write {argument}=[{names!r}]",
        )
    return tuple(names)
