"""The images and the float logits with which the stage makes and compares all INT8 files."""

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
class FloatReference:
    """Images, and the float file's logits for them; one for all files of a run, fine-tuned ones too.

    Attributes:
        data: The data set.
        card: `student.json`; contains the preprocessing of the images.
        settings: The section `quantize`.
        progress: Where progress is reported.
        calibration: int64 (n), indices of the training images for calibration.
        holdout: int64 (n), indices of the held-out training images; disjoint from `calibration`.
        float_holdout: float32 (n, classes), the float file's logits of the held-out training images.
        float_validation: float32 (n, classes), the float file's logits of the validation images.
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
        """int64 (n), the true classes of the validation images."""
        return self.data.validation.labels

    def calibration_feeds(self, method: str) -> Iterator[np.ndarray]:
        """Yield the calibration images as the input takes them, one by one, and report the progress.

        Args:
            method: The calibration method, for the progress.
        """
        for done, index in enumerate(self.calibration, start=1):
            yield feed(self.data.train.images.batch(index[np.newaxis]), self.card)
            self.progress.update(done, len(self.calibration), "images", calibrating=method)

    def holdout_logits(self, model: bytes | Path, *, optimise: bool = True) -> np.ndarray:
        """Return a file's logits of the held-out training images, float32 (n, classes).

        Args:
            model: The file or its bytes.
            optimise: Whether ONNX Runtime may optimise the graph.
        """
        session = open_session(model, optimise=optimise)
        return run_logits(session, self.data.train.images, self.holdout, self.card)

    def validation_logits(self, model: bytes | Path, name: str, *, optimise: bool = True) -> np.ndarray:
        """Return a file's logits of the validation images, float32 (n, classes).

        Args:
            model: The file or its bytes.
            name: The file's name, for the progress.
            optimise: Whether ONNX Runtime may optimise the graph.
        """
        session = open_session(model, optimise=optimise)
        return _split_logits(session, self.data.validation, self.card, self.progress, name)


def create_reference(
    float_file: Path,
    card: Mapping[str, Any],
    data: DataSet,
    settings: QuantizeSettings,
    progress: Progress,
    *,
    calibration: np.ndarray,
    holdout: np.ndarray,
) -> FloatReference:
    """Run the float file once on the images with which all INT8 files are compared.

    Args:
        float_file: The student's float ONNX file.
        card: `student.json`.
        data: The data set.
        settings: The section `quantize`.
        progress: Where progress is reported.
        calibration: int64 (n), indices of the training images for calibration.
        holdout: int64 (n), indices of the held-out training images.

    Raises:
        StageError: The float file's logits are the same for all validation images: agreement with it
            would prove nothing.
    """
    session = open_session(float_file)
    validation = _split_logits(session, data.validation, card, progress, "float")
    require_spread(validation, "The student's float file", "stage quantize, validation images")
    float_holdout = run_logits(session, data.train.images, holdout, card)
    return FloatReference(data, card, settings, progress, calibration, holdout, float_holdout, validation)


def _split_logits(
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


def model_bytes(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model; equal models give equal bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the top-1 accuracy in per cent.

    Args:
        logits: Float (n, classes).
        labels: int64 (n).
    """
    return round(100.0 * float((logits.argmax(axis=1) == labels).mean()), 4)
