"""Which stages a command runs: all, up to one, or one and what it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import stages as stage_table
from pipeline.errors import UsageError
from pipeline.stage import Stage


def needed_stages(name: str, stages: Sequence[Stage] = stage_table.STAGES) -> list[Stage]:
    """Return a stage and all that it needs, in order.

    Raises:
        UsageError: The name is unknown.
    """
    names = {name}
    _check_names([name], stages)
    for stage in reversed(stages):
        if stage.name in names:
            names.update(stage.inputs)
    return [stage for stage in stages if stage.name in names]


def select_stages(
    stages: Sequence[Stage], *, until: str | None, only: str | None, force: Collection[str] = ()
) -> list[Stage]:
    """Return the stages of a run, in order.

    Args:
        stages: The table of stages.
        until: The last stage of the run; None for all.
        only: Only this stage and the stages that it needs.
        force: Stages that run even if they are cached.

    Raises:
        UsageError: A name is unknown, or a forced stage is not in this run.
    """
    _check_names([name for name in (until, only, *force) if name is not None], stages)
    selected = needed_stages(only, stages) if only else list(stages)
    if until:
        names = [stage.name for stage in stages]
        last = names.index(until)
        selected = [stage for stage in selected if names.index(stage.name) <= last]
    outside = sorted(set(force) - {stage.name for stage in selected})
    if outside:
        raise UsageError(
            f"--force names stage {outside[0]}, which is not part of this run",
            why=f"the run has {', '.join(stage.name for stage in selected)}",
            hint=f"leave out --force {outside[0]}, or run up to a later stage",
        )
    return selected


def _check_names(names: Iterable[str], stages: Sequence[Stage]) -> None:
    known = [stage.name for stage in stages]
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"There is no stage {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                why=f"the stages are {', '.join(known)}",
                hint="name one of them",
            )
