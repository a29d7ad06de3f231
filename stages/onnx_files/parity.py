"""Whether a file computes what the network computes: on real images, at several batches.

PyTorch is imported only where it is asked: comparing two files needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StageError
from stages.onnx_files.metadata import INPUT, LOGITS, feed
from stages.onnx_files.sessions import open_session

if TYPE_CHECKING:
    from torch import nn

SINGLES = 8
"""Images compared with PyTorch one at a time, beside all of them at once."""

BATCHES = (1, 2, 7)
ROWS = 14
"""A file's rows at these batches are held against those of all images at once, for so many images."""

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
    import torch

    from stages.models.network_input import resize_to

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


def find_parity(
    network: nn.Module, content: bytes, images: np.ndarray, card: Mapping[str, Any], *, role: str
) -> tuple[list[Parity], dict[str, Any]]:
    """Compares the file with the network, and with itself at other batches.

    images: uint8 (n,H,W,C), real ones. Returns the comparisons with PyTorch at batch 1 and with all
    images at once, and `row_by_row`: how far the rows that the file gives at the batches of `BATCHES` are
    from the rows that it gives all at once. Raises StageError if the reference does not tell images
    apart: then equality proves nothing.
    """
    reference = reference_logits(network, images, card)
    require_spread(reference, f"The {role} {card.get('model', '')}", "stage export, PyTorch on test images")
    session = open_session(content)

    def run(batch: int, count: int) -> np.ndarray:
        parts = [
            session.run([LOGITS], {INPUT: feed(images[start : start + batch], card)})[0]
            for start in range(0, count, batch)
        ]
        return np.concatenate(parts)

    together = run(len(images), len(images))
    checks = [
        # The singles are measured by the spread of all images: eight may be of one class.
        _against(reference, run(1, min(SINGLES, len(images))), batch=1),
        compare(reference, together, batch=len(images)),
    ]
    rows = [
        _against(together, run(batch, min(ROWS, len(images))), batch=batch)
        for batch in BATCHES
        if batch < len(images)
    ]
    return checks, {
        "batches": [row.batch for row in rows],
        "images": min(ROWS, len(images)),
        "max_abs": _rounded(max((row.max_abs for row in rows), default=0.0)),
        "max_relative_to_std": _rounded(max((row.max_relative_to_std for row in rows), default=0.0)),
    }


def parity_fault(
    checks: Sequence[Parity],
    rows: Mapping[str, Any],
    *,
    role: str,
    tolerance: float,
    agreement: float,
) -> StageError | None:
    """What of the comparisons exceeds its limit, or None.

    tolerance: in standard deviations of the reference's logits; rows of one file may differ as much.
    agreement: per cent; one image may always differ, for it may stand between two classes.
    """
    for check in checks:
        if not check.max_relative_to_std <= tolerance:
            return StageError(
                f"The {role}'s ONNX file does not compute what PyTorch computes.",
                where=f"stage export, batch {check.batch}, {check.images} test images",
                why=f"found a logit off by {check.max_abs:.3g}, {check.max_relative_to_std:.3g} of the "
                f"logits' standard deviation ({check.reference_std:.3g}), at most {tolerance:g} is "
                f"tolerated; {check.top1_agreement:.1f} % of the predictions agree",
                hint=f"kdpipe debug PROFILE --model {role} finds the layer; another export.opset may help; "
                "raise export.tolerance only if you know why it differs",
            )
        differing = round(check.images * (1.0 - check.top1_agreement / 100.0))
        if differing > 1 and check.top1_agreement < agreement:
            return StageError(
                f"The {role}'s ONNX file predicts other classes than PyTorch.",
                where=f"stage export, batch {check.batch}, {check.images} test images",
                why=f"{check.top1_agreement:.1f} % of the predictions agree, expected at least "
                f"{agreement:g} % (export.agreement)",
                hint=f"kdpipe debug PROFILE --model {role} finds the layer",
            )
    if not rows["max_relative_to_std"] <= tolerance:
        return StageError(
            f"The {role}'s ONNX file gives an image other logits in another batch.",
            where=f"stage export, {rows['images']} test images in batches of "
            f"{', '.join(map(str, rows['batches']))} and all at once",
            why=f"found a logit off by {rows['max_abs']:.3g}, {rows['max_relative_to_std']:.3g} of the "
            f"logits' standard deviation, at most {tolerance:g} is tolerated: images of a batch influence "
            "one another",
            hint="take out what normalises over the batch; "
            f"kdpipe debug PROFILE --model {role} compares the layers",
        )
    return None


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


def require_spread(logits: np.ndarray, whose: str, where: str) -> None:
    """Raises StageError unless logits (n, classes) are finite and differ from image to image.

    Whatever agrees with one answer for everything is not proved by that. whose: begins the sentence.
    """
    if not np.isfinite(logits).all():
        raise StageError(
            f"{whose} gives logits that are not finite.",
            where=where,
            why="found NaN or infinity: training diverged, the preprocessing is wrong, or a value overflows",
            hint="lower the learning rate, or set clip_grad, and train again; "
            "kdpipe debug PROFILE finds the layer of a converted file",
        )
    spread = compare(logits, logits, batch=len(logits)).reference_spread
    if spread <= SPREAD:
        raise StageError(
            f"{whose} gives the same logits for every image, so parity would prove nothing.",
            where=where,
            why=f"the logits' spread over {len(logits)} images is {spread:.3g}, "
            f"expected above {SPREAD:g}: the network is untrained, its last layer is all zeros, or a "
            "conversion lost the image",
            hint="train it (epochs above 0), or give a checkpoint; "
            "kdpipe debug PROFILE finds the layer of a converted file",
        )
