"""Judge gates on a device: by the accuracy measured there, of the engine that was built there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.gating.judging import Measured, judge
from stages.gating.settings import GateSettings

METRICS = ("accuracy", "accuracy_drop", "agreement", "size_mb")
"""The metrics that are judged on a device. Limits on latency and memory are for the host only."""


class _DeviceMeasured(Measured):
    """The measurements of a device: predictions for the images that were sent, in files of other names."""

    def predictions(self, target: str) -> np.ndarray:
        return self._classes(target)

    def float_predictions(self, network: str) -> np.ndarray:
        return self._classes(f"float_{network}")

    def _classes(self, name: str) -> np.ndarray:
        classes: np.ndarray = np.load(self.folder / "predictions" / f"{name}.npy", allow_pickle=False)
        return classes


def judge_there(
    gates: Sequence[Mapping[str, Any]], folder: Path, scorecard: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Judge the gates that apply to a device.

    Args:
        gates: The gates, as in `gates.json`.
        folder: The folder of the artefact of `kdpipe device measure`.
        scorecard: Its scorecard.

    Returns:
        The judgements, as those of `judging.judge`.
    """
    applicable = [GateSettings(**gate) for gate in gates if gate["metric"] in METRICS]
    return judge(applicable, _DeviceMeasured(folder, scorecard, {}))
