"""How far outputs may be from the golden ones on another machine."""

from __future__ import annotations

TOLERANCE = {"fp32": (5e-3, 1.0), "fp16": (5e-2, 0.95), "bf16": (1e-1, 0.95), "int8": (5e-1, 0.9)}
"""By precision: the largest logit difference from the golden outputs, as a share of their standard
deviation, and the least share of images with the same class, that a self-test accepts. The same
file on another processor sums in another order; INT8 kernels of older processors also saturate."""
