"""ONNX Runtime's GPU providers, built and run on the GPU of this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline.stage import Silent
from stages.runtimes import parity, probe, registry
from stages.runtimes.base import Session, Source
from stages.runtimes.images import natural_images
from stages.runtimes.on_gpu import GpuSession
from stages.runtimes.settings import BuildSettings
from tests.stages.runtimes.networks import source_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        bool(probe.cuda_device().get("error")), reason=probe.cuda_device().get("error", "no NVIDIA GPU")
    ),
]

SETTINGS = BuildSettings(batch_min=1, batch_opt=4, batch_max=8, workspace_mb=512)


def _runtime(name: str) -> Any:
    found = registry.get(name)
    ability = found.ability_to_build()
    if not ability.can:
        pytest.skip(f"{name}: {ability.why_not}")
    return found


@pytest.fixture(params=["onnxruntime_cuda", "onnxruntime_tensorrt"])
def runtime(request: pytest.FixtureRequest) -> Any:
    return _runtime(request.param)


def _built(runtime: Any, source: Source, folder: Path) -> tuple[dict[str, Any], Session]:
    folder.mkdir(parents=True)
    facts = runtime.build(source, folder, SETTINGS, Silent(), folder.parent / "work")
    return facts, runtime.load(folder, source, 1)


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_target_agrees_with_its_source(runtime: Any, name: str, precision: str, tmp_path: Path) -> None:
    if precision not in runtime.precisions:
        pytest.skip(runtime.not_offered[precision])
    source = source_of(name, precision)
    facts, session = _built(runtime, source, tmp_path / "built")
    agreement = parity.check(session, source, (1, 2, 7), f"{runtime.name}-{precision}")
    assert agreement.relative < {"fp32": 0.01, "fp16": 0.05, "int8": 0.5}[precision]
    assert session.facts["provider"] in facts["nodes"]
    assert session.facts["nodes"] == facts["nodes"]


def test_engines_are_loaded_and_not_built_again(tmp_path: Path) -> None:
    runtime = _runtime("onnxruntime_tensorrt")
    source = source_of("cnn", "fp16")
    facts, session = _built(runtime, source, tmp_path / "built")
    assert facts["engines"] >= 1
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "built").iterdir()}
    session.logits(natural_images(source.image_shape, 5))
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "built").iterdir()} == before


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_phases_by_cuda_events_fit_the_wall(runtime: Any, cuda_graph: bool, tmp_path: Path) -> None:
    source = source_of("cnn", preprocessing=False)
    _, session = _built(runtime, source, tmp_path / "built")
    assert isinstance(session, GpuSession)
    images = natural_images(source.image_shape, 8)
    expected = cast("Session", session).logits(images)
    timing = session.timed_on_gpu(images, cuda_graph=cuda_graph, transfers=False)
    facts = cast("Session", session).facts
    assert facts["cuda_graph"] is cuda_graph
    assert facts["transfers"] == "excluded"
    wall_ms = []
    for _ in range(50):
        before = time.perf_counter()
        timing.call()
        wall_ms.append(1e3 * (time.perf_counter() - before))
    phases = [timing.phases() for _ in range(50)]
    assert min(one.to_gpu_ms for one in phases) > 0
    assert 0 < float(np.median([one.inference_ms for one in phases])) <= 1.1 * float(np.median(wall_ms))
    np.testing.assert_allclose(cast("Session", session).logits(images), expected, rtol=1e-4, atol=1e-5)
