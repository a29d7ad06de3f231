"""Limits of the difference from golden outputs on another machine."""

from __future__ import annotations

TOLERANCE = {"fp32": (5e-3, 1.0), "fp16": (5e-2, 0.95), "bf16": (1e-1, 0.95), "int8": (5e-1, 0.9)}
"""By precision: the largest difference from the golden logits, in their standard deviations, and the smallest
share of images with the same class, that a self-test accepts. Another processor adds in another order, and
INT8 kernels of older processors saturate."""
