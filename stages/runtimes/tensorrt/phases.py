"""The progress of a build, from the nested phases that the builder's progress monitor reports. Light."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class Phases:
    """The open phases of a build.

    They are nested: the progress of the inner phase is part of a step of the outer phase.

    Attributes:
        share: of the whole build, 0..1, never falling; by steps, which do not all take equally long.
        current: the phase of the last report.
    """

    share: float = 0.0
    current: str = "starting"
    _open: dict[str, _Phase] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open a phase of so many steps; `parent` is the phase around it."""
        self._open[name] = _Phase(parent, max(1, steps))
        self.current = name

    def step(self, name: str, step: int) -> None:
        """Record that step number `step`, counted from 0, of the phase is done."""
        phase = self._open.get(name)
        if phase is None:
            return
        phase.done = min(phase.steps, step + 1)
        self.current = name
        roots = [root for root, phase in self._open.items() if phase.parent is None]
        if roots:
            self.share = max(self.share, min(1.0, self._of(roots[-1])))

    def finish(self, name: str) -> None:
        """Close a phase."""
        phase = self._open.pop(name, None)
        if phase and phase.parent in self._open:
            self.current = str(phase.parent)

    def steps(self) -> tuple[int, int]:
        """Return how many steps of the current phase are done, and how many it has."""
        phase = self._open.get(self.current)
        return (phase.done, phase.steps) if phase else (0, 1)

    def _of(self, name: str) -> float:
        phase = self._open[name]
        children = [child for child, inner in self._open.items() if inner.parent == name and child != name]
        ahead = max((self._of(child) for child in children), default=0.0) if phase.done < phase.steps else 0.0
        return min(phase.steps, phase.done + min(ahead, 1.0)) / phase.steps


def remaining_s(share: float, elapsed_s: float, earlier_s: float | None) -> float | None:
    """Estimate how long a build will still take, in seconds; None while there is no estimate.

    The duration of an earlier build predicts more than the steps do. When it is over, or if there was no
    earlier build, the estimate comes from the steps, after a tenth of them and some seconds.

    Args:
        share: of the build that is done, 0..1.
        elapsed_s: since its start.
        earlier_s: how long the same build took before; None: unknown.
    """
    if earlier_s is not None and elapsed_s < earlier_s:
        return earlier_s - elapsed_s
    if share < 0.1 or elapsed_s < 2.0:
        return None
    return elapsed_s * (1.0 - share) / share
