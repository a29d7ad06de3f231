"""Feeds images batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stages.data.load import Split

Batch = tuple[np.ndarray, np.ndarray]
"""Images uint8 (n,H,W,C) and labels int64 (n,)."""


def batches(
    split: Split,
    batch_size: int,
    *,
    order: np.ndarray | None = None,
    drop_last: bool = False,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """The images of `split` in steps of `batch_size`, as (uint8 NHWC, int64 labels).

    order: int64 indices into the split, in the order wanted; None: all, as they lie.
    drop_last: leave out a last batch that is not full.
    prefetch: so many batches are decoded by threads while the current one is used; what lies in memory
        needs none. What is fed does not depend on it.

    Raises DataError, at the batch it is in, if a file cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    chosen = np.arange(len(split)) if order is None else np.asarray(order, dtype=np.int64)
    end = len(chosen) - len(chosen) % batch_size if drop_last else len(chosen)
    steps = [chosen[start : start + batch_size] for start in range(0, end, batch_size)]
    if prefetch < 1 or getattr(split.images, "in_memory", False):
        return ((split.images.batch(step), split.labels[step]) for step in steps)
    return _ahead(split, steps, prefetch)


def _ahead(split: Split, steps: list[np.ndarray], prefetch: int) -> Iterator[Batch]:
    # One thread keeps the order; the pool below it decodes the images of a batch side by side.
    feeder = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-feed")
    waiting: deque[tuple[Future[np.ndarray], np.ndarray]] = deque()
    coming = iter(steps)

    def ask() -> None:
        step = next(coming, None)
        if step is not None:
            waiting.append((feeder.submit(split.images.batch, step), step))

    try:
        for _ in range(prefetch + 1):
            ask()
        while waiting:
            future, step = waiting.popleft()
            images = future.result()
            ask()
            yield images, split.labels[step]
    finally:
        feeder.shutdown(wait=True, cancel_futures=True)
