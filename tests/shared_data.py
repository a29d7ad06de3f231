"""Real data sets and trained weights that lie outside of the repository, where a machine has them.

They are looked for in $KDPIPE_TEST_DATA, else in `shared/data` in the repository or beside it. Its
README tells the form: CIFAR as WebP strips, weights as safetensors.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import ROOT


def shared(path: str) -> Path:
    """The file or folder; skips the test, with the reason, if the machine does not have it."""
    told = os.environ.get("KDPIPE_TEST_DATA")
    folders = [Path(told)] if told else [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    for folder in folders:
        if (folder / path).exists():
            return folder / path
    pytest.skip(f"no {path} in {' or '.join(map(str, folders))}: set KDPIPE_TEST_DATA to its folder")


def cifar_test_set(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (10000, 32, 32, 3) and labels (10000) of `cifar10` or `cifar100`."""
    with np.load(shared(f"{name}/test.npz")) as packed:
        strips = sorted(key for key in packed.files if key[0] == "s" and key[1:].isdigit())
        images = [np.asarray(Image.open(io.BytesIO(packed[strip].tobytes()))) for strip in strips]
        return np.concatenate(images).reshape(-1, 32, 32, 3), packed["labels"].astype(np.int64)
