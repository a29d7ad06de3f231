"""How far a build is, from the nested phases that the builder's progress monitor tells. Light."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class Phases:
    """Phases lie in one another: a step of the outer one is as far as the inner one has come.

    `share` (0..1, never falling) is of the whole build by steps, which do not all take equally long.
    """

    share: float = 0.0
    current: str = "starting"
    _open: dict[str, _Phase] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = _Phase(parent, max(1, steps))
        self.current = name

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, of the phase is done."""
        phase = self._open.get(name)
        if phase is None:
            return
        phase.done = min(phase.steps, step + 1)
        self.current = name
        roots = [one for one, phase in self._open.items() if phase.parent is None]
        if roots:
            self.share = max(self.share, min(1.0, self._of(roots[-1])))

    def finish(self, name: str) -> None:
        phase = self._open.pop(name, None)
        if phase and phase.parent in self._open:
            self.current = str(phase.parent)

    def steps(self) -> tuple[int, int]:
        """Steps done and steps of the current phase."""
        phase = self._open.get(self.current)
        return (phase.done, phase.steps) if phase else (0, 1)

    def _of(self, name: str) -> float:
        phase = self._open[name]
        inside = [one for one, inner in self._open.items() if inner.parent == name and one != name]
        ahead = max((self._of(one) for one in inside), default=0.0) if phase.done < phase.steps else 0.0
        return min(phase.steps, phase.done + min(ahead, 1.0)) / phase.steps


def to_go_s(share: float, elapsed_s: float, before_s: float | None) -> float | None:
    """How long a build is likely to go on; None while it cannot be told.

    before_s: how long the same build took before, which tells more than steps do; once that is over,
    and where there was none, the steps tell, from a tenth of them and some seconds on.
    """
    if before_s is not None and elapsed_s < before_s:
        return before_s - elapsed_s
    if share < 0.1 or elapsed_s < 2.0:
        return None
    return elapsed_s * (1.0 - share) / share
