"""Whether a file computes what the network computes: on real images, at two batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import StageError
from stages.models.feeding import resize_to
from stages.onnx_files.metadata import INPUT, LOGITS, feed
from stages.onnx_files.sessions import open_session

SINGLES = 8
"""Images compared one at a time, beside all of them at once."""

SPREAD = 1e-6
"""Logits that differ less than this from image to image prove nothing."""


@dataclass(frozen=True)
class Parity:
    """One comparison of an ONNX file with PyTorch.

    batch: images a run. images: images compared. max_abs: largest difference of a logit.
    reference_std: standard deviation of all the reference's logits. max_relative_to_std: max_abs
    over it. reference_spread: standard deviation of a logit from image to image, root mean square
    over the classes. top1_agreement: per cent of the images with the same predicted class.
    """

    batch: int
    images: int
    max_abs: float
    max_relative_to_std: float
    top1_agreement: float
    reference_std: float
    reference_spread: float

    def as_json(self) -> dict[str, Any]:
        """Three digits of what is measured: more would tell of the machine's rounding."""
        figures = {name: _rounded(value) for name, value in asdict(self).items()}
        return {**figures, "top1_agreement": round(self.top1_agreement, 4)}


def reference_logits(network: nn.Module, images: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    """What PyTorch says of these images: uint8 (n,H,W,C) -> float32 (n, classes).

    The images are normalised and resized as in training, outside any graph, so that the preprocessing
    inside a file is proven too.
    """
    normalised = torch.from_numpy(feed(images, {**card, "input": "float32_nchw"}))
    side = card["preprocessing"].get("network_size")
    with torch.inference_mode():
        shown = normalised if side is None else resize_to(normalised, side)
        found: np.ndarray = network.eval()(shown).float().numpy()
    return found


def compare(reference: np.ndarray, found: np.ndarray, *, batch: int) -> Parity:
    """Both float32 (n, classes). Raises ValueError if the shapes differ."""
    if reference.shape != found.shape:
        raise ValueError(f"logits of shape {found.shape} against a reference of shape {reference.shape}")
    wide, other = reference.astype(np.float64), found.astype(np.float64)
    std = float(wide.std())
    largest = float(np.abs(wide - other).max())
    return Parity(
        batch=batch,
        images=len(wide),
        max_abs=largest,
        max_relative_to_std=largest / std if std > 0.0 else float("inf"),
        top1_agreement=100.0 * float((wide.argmax(axis=1) == other.argmax(axis=1)).mean()),
        reference_std=std,
        reference_spread=float(np.sqrt(wide.var(axis=0).mean())),
    )


def prove_parity(
    network: nn.Module,
    content: bytes,
    images: np.ndarray,
    card: Mapping[str, Any],
    *,
    role: str,
    tolerance: float,
) -> list[Parity]:
    """Compares the file with the network at batch 1 and with all images at once.

    images: uint8 (n,H,W,C), real ones. Raises StageError if the reference does not tell images
    apart (then equality proves nothing), or if a logit differs by more than `tolerance` standard
    deviations of the reference.
    """
    reference = reference_logits(network, images, card)
    _require_spread(reference, role, str(card.get("model", "")))
    session = open_session(content)
    singles = [
        session.run([LOGITS], {INPUT: feed(images[index : index + 1], card)})[0]
        for index in range(min(SINGLES, len(images)))
    ]
    together = session.run([LOGITS], {INPUT: feed(images, card)})[0]
    checks = [
        # The singles are measured by the spread of all images: eight may be of one class.
        _against(reference, np.concatenate(singles), batch=1),
        compare(reference, together, batch=len(images)),
    ]
    for check in checks:
        if not check.max_relative_to_std <= tolerance:
            raise StageError(
                f"The {role}'s ONNX file does not compute what PyTorch computes.",
                where=f"stage export, batch {check.batch}, {check.images} test images",
                why=f"found a logit off by {check.max_abs:.3g}, {check.max_relative_to_std:.3g} of the "
                f"logits' standard deviation ({check.reference_std:.3g}), at most {tolerance:g} is "
                f"tolerated; {check.top1_agreement:.1f} % of the predictions agree",
                mend="try another export.opset; raise export.tolerance only if you know why it differs",
            )
    return checks


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.3g}")


def _against(reference: np.ndarray, found: np.ndarray, *, batch: int) -> Parity:
    whole = compare(reference, reference, batch=batch)
    part = compare(reference[: len(found)], found, batch=batch)
    return Parity(
        batch=batch,
        images=len(found),
        max_abs=part.max_abs,
        max_relative_to_std=part.max_abs / whole.reference_std,
        top1_agreement=part.top1_agreement,
        reference_std=whole.reference_std,
        reference_spread=whole.reference_spread,
    )


def _require_spread(reference: np.ndarray, role: str, name: str) -> None:
    if not np.isfinite(reference).all():
        raise StageError(
            f"The {role} {name} gives logits that are not finite.",
            where="stage export, PyTorch on test images",
            why="found NaN or infinity: training diverged, or the preprocessing is wrong",
            mend="lower the learning rate, or set clip_grad, and train again",
        )
    itself = compare(reference, reference, batch=len(reference))
    if itself.reference_spread <= SPREAD:
        raise StageError(
            f"The {role} {name} gives the same logits for every image, so parity would prove nothing.",
            where="stage export, PyTorch on test images",
            why=f"the logits' spread over {len(reference)} images is {itself.reference_spread:.3g}, "
            f"expected above {SPREAD:g}: the network is untrained, or its last layer is all zeros",
            mend="train it (epochs above 0), or give a checkpoint",
        )
