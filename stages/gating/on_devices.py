"""Gates judged on a device: by the accuracy that was found there, of the engine that was built there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.gating.judging import Measured, judge
from stages.gating.settings import GateSettings

METRICS = ("accuracy", "accuracy_drop", "agreement", "size_mb")
"""What is judged of a device. A limit on latency or memory is meant for the host, and holds for no other."""


class _There(Measured):
    """A device's artefact: classes for the images that were sent, in files of other names."""

    def predictions(self, target: str) -> np.ndarray:
        return self._classes(target)

    def of_float(self, network: str) -> np.ndarray:
        return self._classes(f"float_{network}")

    def _classes(self, name: str) -> np.ndarray:
        found: np.ndarray = np.load(self.folder / "predictions" / f"{name}.npy", allow_pickle=False)
        return found


def judge_there(
    gates: Sequence[Mapping[str, Any]], folder: Path, scorecard: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Judgements as of `judging.judge`, of those gates that a device is judged by.

    gates: as in `gates.json`. folder, scorecard: of the artefact that `kdpipe device measure` left.
    """
    counted = [GateSettings(**gate) for gate in gates if gate["metric"] in METRICS]
    return judge(counted, _There(folder, scorecard, {}))
