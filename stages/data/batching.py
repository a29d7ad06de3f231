"""Batches of images, decoded ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stages.data.load import Split

Batch = tuple[np.ndarray, np.ndarray]
"""Images, uint8 (n, H, W, C), and labels, int64 (n,)."""


def batches(
    split: Split,
    batch_size: int,
    *,
    order: np.ndarray | None = None,
    drop_last: bool = False,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Iterate over the images of a split in batches.

    Args:
        split: The images and labels.
        batch_size: Images in a batch.
        order: Indices into the split in the order of use, int64 (n,); None: all images in the split's order.
        drop_last: Leave out the last batch if it is not full.
        prefetch: How many batches threads decode while the caller uses the current one. Images in memory
            need no prefetch. It does not change the batches.

    Returns:
        Batches of images, uint8 (n, H, W, C), and labels, int64 (n,).

    Raises:
        DataError: A file cannot be read; raised at the batch that contains it.
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    chosen = np.arange(len(split)) if order is None else np.asarray(order, dtype=np.int64)
    end = len(chosen) - len(chosen) % batch_size if drop_last else len(chosen)
    steps = [chosen[start : start + batch_size] for start in range(0, end, batch_size)]
    if prefetch < 1 or getattr(split.images, "in_memory", False):
        return ((split.images.batch(step), split.labels[step]) for step in steps)
    return _prefetched(split, steps, prefetch)


def _prefetched(split: Split, steps: list[np.ndarray], prefetch: int) -> Iterator[Batch]:
    # A single thread preserves the order; the decoding pool decodes the images of a batch in parallel.
    prefetcher = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-prefetch")
    pending: deque[tuple[Future[np.ndarray], np.ndarray]] = deque()
    remaining = iter(steps)

    def submit_next() -> None:
        step = next(remaining, None)
        if step is not None:
            pending.append((prefetcher.submit(split.images.batch, step), step))

    try:
        for _ in range(prefetch + 1):
            submit_next()
        while pending:
            future, step = pending.popleft()
            images = future.result()
            submit_next()
            yield images, split.labels[step]
    finally:
        prefetcher.shutdown(wait=True, cancel_futures=True)
