"""What INT8 files are made with and judged on: the same images and the same float logits for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.stage import Progress
from stages.data.load import DataSet, Split
from stages.onnx_files.metadata import feed
from stages.onnx_files.parity import require_spread
from stages.onnx_files.sessions import open_session, run_logits
from stages.quantizing.settings import QuantizeSettings


@dataclass(frozen=True)
class Bench:
    """One for a run of the stage; what is fine-tuned later is judged by the same float file.

    card: `student.json`, tells how images are fed. calibration, holdout: int64 (n,), indices of training
    images, disjoint. float_holdout, float_validation: float32 (n, classes), what the float file says of
    the held-out training images and of the validation images.
    """

    data: DataSet
    card: Mapping[str, Any]
    settings: QuantizeSettings
    progress: Progress
    calibration: np.ndarray
    holdout: np.ndarray
    float_holdout: np.ndarray
    float_validation: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,): the true classes of the validation images."""
        return self.data.validation.labels

    def calibration_feeds(self, doing: str) -> Iterator[np.ndarray]:
        """The calibration images one by one, batch 1, as the input takes them; tells the progress."""
        for done, index in enumerate(self.calibration, start=1):
            yield feed(self.data.train.images.batch(index[np.newaxis]), self.card)
            self.progress.update(done, len(self.calibration), "images", calibrating=doing)

    def holdout_logits(self, model: bytes | Path, *, optimise: bool = True) -> np.ndarray:
        """float32 (n, classes): what a file says of the held-out training images."""
        session = open_session(model, optimise=optimise)
        return run_logits(session, self.data.train.images, self.holdout, self.card)

    def validation_logits(self, model: bytes | Path, name: str, *, optimise: bool = True) -> np.ndarray:
        """float32 (n, classes): what a file says of the validation images."""
        session = open_session(model, optimise=optimise)
        return _all_logits(session, self.data.validation, self.card, self.progress, name)


def open_bench(
    float_file: Path,
    card: Mapping[str, Any],
    data: DataSet,
    settings: QuantizeSettings,
    progress: Progress,
    *,
    calibration: np.ndarray,
    holdout: np.ndarray,
) -> Bench:
    """Runs the float file once on the images that all INT8 files are judged on.

    Raises StageError if it does not tell the validation images apart: agreement would prove nothing.
    """
    session = open_session(float_file)
    validation = _all_logits(session, data.validation, card, progress, "float")
    require_spread(validation, "The student's float file", "stage quantize, validation images")
    held = run_logits(session, data.train.images, holdout, card)
    return Bench(data, card, settings, progress, calibration, holdout, held, validation)


def _all_logits(
    session: Any, split: Split, card: Mapping[str, Any], progress: Progress, name: str
) -> np.ndarray:
    count = len(split)
    return run_logits(
        session,
        split.images,
        np.arange(count),
        card,
        on_progress=lambda done: progress.update(done, count, "images", checking=name),
    )


def content(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same for the same model."""
    return model.SerializeToString(deterministic=True)


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the images whose true class has the largest logit."""
    return round(100.0 * float((logits.argmax(axis=1) == labels).mean()), 4)
