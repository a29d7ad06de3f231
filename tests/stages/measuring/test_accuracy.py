"""The logits of every test image, whatever batches the target's file takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.heartbeat import Beats
from stages.measuring import worker
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from tests.stages.runtimes.plugins import install_plugin

FROM_EIGHT = '''
    """A runtime whose files take 8 to 16 images, as an engine of such a profile does."""

    import numpy as np

    from stages.runtimes.base import Ability


    class Session:
        facts = {}

        def logits(self, images):
            assert 8 <= len(images) <= 16, f"{len(images)} images"
            return images.reshape(len(images), -1)[:, :3].astype(np.float32)


    class Runtime:
        name = "from_eight"
        precisions = ("fp32",)
        not_offered = {}
        recipe = "signed"
        distributions = ()

        def ability_to_build(self):
            return Ability(True)

        ability_to_run = ability_to_build

        def build(self, source, output, settings, progress, work):
            return {"batch_min": 8, "batch_max": 16}

        def load(self, folder, source, threads):
            return Session()


    RUNTIME = Runtime()
'''


@pytest.mark.parametrize(("images", "batch"), [(20, 16), (20, 4), (5, 16), (16, 64)])
def test_an_engine_for_larger_batches_is_given_none_that_is_smaller(
    images: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install_plugin(tmp_path, "from_eight", FROM_EIGHT)
    pixels = np.arange(images * 4 * 4 * 3, dtype=np.uint8).reshape(images, 4, 4, 3)
    np.save(tmp_path / "images.npy", pixels)
    subject = Subject(
        target={
            "model": "student",
            "target": "from_eight-fp32",
            "runtime": "from_eight",
            "precision": "fp32",
            "facts": {"batch_min": 8, "batch_max": 16},
        },
        card={
            "preprocessing": {"image_size": 4, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
            "input": "uint8_nhwc",
        },
        folder=tmp_path,
        images=tmp_path / "images.npy",
        work=tmp_path / "work",
    )
    job = subject.worker_job(MeasureSettings(accuracy_batch=batch), "accuracy", threads=1)
    worker.compute_logits(job, tmp_path, Beats(lambda line: None))
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_array_equal(logits, pixels.reshape(images, -1)[:, :3])
