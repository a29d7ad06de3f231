"""Compare an ONNX file with the PyTorch network on real images, at several batches.

PyTorch is imported only in the functions that run it: comparing two files does not need it.
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
"""Images compared with PyTorch one at a time, in addition to all of them at once."""

BATCHES = (1, 2, 7)
ROWS = 14
"""The first `ROWS` images' logits at these batches are compared with those of one large batch."""

SPREAD = 1e-6
"""Logits with a smaller standard deviation from image to image prove nothing."""


@dataclass(frozen=True)
class Parity:
    """One comparison of an ONNX file with PyTorch.

    Attributes:
        batch: Images in a run.
        images: Number of images compared.
        max_abs: Largest difference of a logit.
        max_relative_to_std: `max_abs` over `reference_std`.
        top1_agreement: Share of the images with the same predicted class, in per cent.
        reference_std: Standard deviation of all the reference's logits.
        reference_spread: Standard deviation of a logit from image to image, root mean square over the
            classes.
    """

    batch: int
    images: int
    max_abs: float
    max_relative_to_std: float
    top1_agreement: float
    reference_std: float
    reference_spread: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures, rounded to three digits: further digits depend on the machine's rounding."""
        figures = {name: _rounded(value) for name, value in asdict(self).items()}
        return {**figures, "top1_agreement": round(self.top1_agreement, 4)}


def reference_logits(network: nn.Module, images: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    """Compute the logits in PyTorch.

    The images are normalised and resized the way training does, outside of any graph. A comparison therefore
    also proves the preprocessing inside a file.

    Args:
        network: The network; it is set to eval mode.
        images: uint8 (n, H, W, C).
        card: The network's card.

    Returns:
        float32 (n, classes).
    """
    import torch

    from stages.models.network_input import resize_to

    normalised = torch.from_numpy(feed(images, {**card, "input": "float32_nchw"}))
    side = card["preprocessing"].get("network_size")
    with torch.inference_mode():
        inputs = normalised if side is None else resize_to(normalised, side)
        logits: np.ndarray = network.eval()(inputs).float().numpy()
    return logits


def compare(reference: np.ndarray, logits: np.ndarray, *, batch: int) -> Parity:
    """Compare logits with reference logits.

    Args:
        reference: float32 (n, classes).
        logits: float32 (n, classes).
        batch: Images in a run, for the result.

    Raises:
        ValueError: If the shapes differ.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} against a reference of shape {reference.shape}")
    wide, other = reference.astype(np.float64), logits.astype(np.float64)
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


def measure_parity(
    network: nn.Module, content: bytes, images: np.ndarray, card: Mapping[str, Any], *, role: str
) -> tuple[list[Parity], dict[str, Any]]:
    """Compare the file with the network, and with itself at other batches.

    Args:
        network: The network.
        content: The ONNX file's bytes.
        images: uint8 (n, H, W, C), real images.
        card: The network's card, with `input`.
        role: "teacher" or "student", for messages.

    Returns:
        The comparisons with PyTorch at batch 1 and at one large batch, and the JSON-ready `row_by_row`: the
        largest difference between the file's logits at the batches of `BATCHES` and at one large batch.

    Raises:
        StageError: If the reference gives the same logits for every image: equality would prove nothing.
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

    whole_batch = run(len(images), len(images))
    checks = [
        # The single images are compared relative to the spread of all images: eight may be of one class.
        _compare_part(reference, run(1, min(SINGLES, len(images))), batch=1),
        compare(reference, whole_batch, batch=len(images)),
    ]
    rows = [
        _compare_part(whole_batch, run(batch, min(ROWS, len(images))), batch=batch)
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
    """Return an error for the first comparison that exceeds its limit, or None.

    Args:
        checks: The comparisons with PyTorch.
        rows: The `row_by_row` of `measure_parity`.
        role: "teacher" or "student", for messages.
        tolerance: Largest difference of a logit, in standard deviations of the reference's logits; also the
            limit for one file at several batches.
        agreement: Least share of equal predictions, in per cent. One image may always differ: it may be on
            the border between two classes.
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
            hint="remove the layers that normalise over the batch; "
            f"kdpipe debug PROFILE --model {role} compares the layers",
        )
    return None


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.3g}")


def _compare_part(reference: np.ndarray, logits: np.ndarray, *, batch: int) -> Parity:
    """Compare the first images' logits, relative to the spread of all reference logits."""
    overall = compare(reference, reference, batch=batch)
    part = compare(reference[: len(logits)], logits, batch=batch)
    return Parity(
        batch=batch,
        images=len(logits),
        max_abs=part.max_abs,
        max_relative_to_std=part.max_abs / overall.reference_std,
        top1_agreement=part.top1_agreement,
        reference_std=overall.reference_std,
        reference_spread=overall.reference_spread,
    )


def require_spread(logits: np.ndarray, subject: str, where: str) -> None:
    """Raise an error unless the logits are finite and differ from image to image.

    Agreement with constant logits proves nothing.

    Args:
        logits: (n, classes).
        subject: The subject of the message, such as "The student resnet18".
        where: The message's location.

    Raises:
        StageError: If the logits are not finite or are the same for every image.
    """
    if not np.isfinite(logits).all():
        raise StageError(
            f"{subject} gives logits that are not finite.",
            where=where,
            why="found NaN or infinity: training diverged, the preprocessing is wrong, or a value overflows",
            hint="lower the learning rate, or set clip_grad, and train again; "
            "kdpipe debug PROFILE finds the layer of a converted file",
        )
    spread = compare(logits, logits, batch=len(logits)).reference_spread
    if spread <= SPREAD:
        raise StageError(
            f"{subject} gives the same logits for every image, so parity would prove nothing.",
            where=where,
            why=f"the logits' spread over {len(logits)} images is {spread:.3g}, "
            f"expected above {SPREAD:g}: the network is untrained, its last layer is all zeros, or a "
            "conversion lost the image",
            hint="train it (epochs above 0), or set a checkpoint; "
            "kdpipe debug PROFILE finds the layer of a converted file",
        )
