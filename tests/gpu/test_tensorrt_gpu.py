"""TensorRT engines, built and run on the GPU of this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.stage import Silent
from stages.runtimes import parity, probe, registry
from stages.runtimes.base import Session, Source
from stages.runtimes.images import natural_images
from stages.runtimes.on_gpu import GpuSession
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import source_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        bool(probe.cuda_device().get("error")), reason=probe.cuda_device().get("error", "no NVIDIA GPU")
    ),
]

SETTINGS = BuildSettings(batch_min=1, batch_opt=4, batch_max=8, workspace_mb=512)


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def runtime(request: pytest.FixtureRequest) -> Any:
    found = registry.get(request.param)
    for ability in (found.ability_to_build(), found.ability_to_run()):
        if not ability.can:
            pytest.skip(f"{request.param}: {ability.why_not}")
    return found


def _built(runtime: Any, source: Source, folder: Path) -> tuple[dict[str, Any], Session]:
    folder.mkdir(parents=True)
    facts = runtime.build(source, folder, SETTINGS, Silent(), folder.parent / "work")
    return facts, runtime.load(folder, source, 1)


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_engine_agrees_with_its_source(runtime: Any, name: str, precision: str, tmp_path: Path) -> None:
    source = source_of(name, precision)
    facts, session = _built(runtime, source, tmp_path / "built")
    agreement = parity.check(session, source, (1, 2, 7), f"{runtime.name}-{precision}")
    assert agreement.relative < {"fp32": 0.01, "fp16": 0.05, "bf16": 0.15, "int8": 0.5}[precision]
    assert session.facts["device"]
    assert session.facts["effective_precision"].startswith(precision)
    assert facts["strongly_typed"] is True


def test_plain_graph_takes_normalised_images(runtime: Any, tmp_path: Path) -> None:
    source = source_of("cnn", preprocessing=False)
    _, session = _built(runtime, source, tmp_path / "built")
    parity.check(session, source, (1, 2, 7), "plain")


def test_bindings_do_not_disturb_each_other(runtime: Any, tmp_path: Path) -> None:
    source = source_of("cnn")
    _, session = _built(runtime, source, tmp_path / "built")
    images = natural_images(source.image_shape, 8)
    calls = [session.timed(images[:batch]) for batch in (1, 8)]
    expected = session.logits(images)
    for call in (*calls, *calls):
        call()
    np.testing.assert_array_equal(session.logits(images), expected)


def test_a_timed_call_waits_for_the_result(runtime: Any, tmp_path: Path) -> None:
    source = source_of("vit")
    _, session = _built(runtime, source, tmp_path / "built")
    call = session.timed(natural_images(source.image_shape, 8))
    for _ in range(20):
        call()
    import torch

    before = time.perf_counter()
    for _ in range(20):
        call()
    called = time.perf_counter() - before
    torch.cuda.synchronize()
    assert time.perf_counter() - before - called < 0.1 * called


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_phases_by_cuda_events_fit_the_wall(runtime: Any, cuda_graph: bool, tmp_path: Path) -> None:
    source = source_of("cnn")
    _, session = _built(runtime, source, tmp_path / "built")
    assert isinstance(session, GpuSession)
    images = natural_images(source.image_shape, 8)
    wall_ms = {}
    for transfers in (True, False):
        timing = session.timed_on_gpu(images, cuda_graph=cuda_graph, transfers=transfers)
        facts = cast("Session", session).facts
        assert facts["cuda_graph"] is cuda_graph
        assert facts["transfers"] == ("included" if transfers else "excluded")
        times = []
        for _ in range(50):
            before = time.perf_counter()
            timing.call()
            times.append(time.perf_counter() - before)
        wall_ms[transfers] = 1e3 * float(np.median(times))
    phases = [timing.phases() for _ in range(50)]
    inference_ms = float(np.median([one.inference_ms for one in phases]))
    assert min(one.to_gpu_ms for one in phases) > 0
    assert min(one.from_gpu_ms for one in phases) > 0
    assert 0 < inference_ms <= 1.1 * wall_ms[False]
    assert wall_ms[False] < wall_ms[True]


def test_a_batch_outside_the_profile_says_which_key_to_change(runtime: Any, tmp_path: Path) -> None:
    source = source_of("cnn")
    _, session = _built(runtime, source, tmp_path / "built")
    with raises(StageError, what="does not take this batch") as caught:
        session.logits(natural_images(source.image_shape, 9))
    assert "--set build.batch_max=9" in caught.value.hint


def test_classic_engine_is_inspected_and_its_timings_are_kept_and_reused(tmp_path: Path) -> None:
    classic = registry.get("tensorrt")
    ability = classic.ability_to_build()
    if not ability.can:
        pytest.skip(ability.why_not)
    source = source_of("cnn", "fp16")
    facts, _ = _built(classic, source, tmp_path / "first")
    assert facts["engine_layers"]["layers"] > 0
    assert facts["engine_layers_why_not"] is None
    assert sum(facts["engine_layers"]["by_type"].values()) > 0
    assert "other" not in facts["engine_layers"]["by_type"], "types are told, for the sizes are set"
    timings = (tmp_path / "first" / "timing.cache").read_bytes()
    assert len(timings) > 100
    assert len(list((tmp_path / "work").glob("*.cache"))) == 1
    _built(classic, source, tmp_path / "second")
    sidecar = json.loads((tmp_path / "second" / "engine.json").read_text())
    assert sidecar["compute_capability"]
    assert sidecar["gpu"]


@pytest.mark.parametrize(
    "options",
    [
        {"refit": True},
        {"hardware_compatible": "ampere_plus"},
        {"version_compatible": True, "trust_engine_host_code": True},
    ],
    ids=["refit", "hardware", "version"],
)
def test_classic_engine_with_options_is_built_and_agrees(options: dict[str, Any], tmp_path: Path) -> None:
    classic = registry.get("tensorrt")
    ability = classic.ability_to_build()
    if not ability.can:
        pytest.skip(ability.why_not)
    source = source_of("cnn", "fp16")
    settings = SETTINGS.model_copy(update=options)
    folder = tmp_path / "built"
    folder.mkdir()
    facts = classic.build(source, folder, settings, Silent(), tmp_path / "work")
    sidecar = json.loads((folder / "engine.json").read_text())
    key, value = next(iter(options.items()))
    assert sidecar[key] == value
    assert facts["tuned_for_batch"] == 4
    session = classic.load(folder, source, 1)
    parity.check(session, source, (1, 2, 7), "tensorrt-fp16")
    assert session.facts["tuned_for_batch"] == 4
