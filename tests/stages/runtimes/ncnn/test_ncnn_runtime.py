from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline import heartbeat
from pipeline.child_process import environment
from pipeline.errors import StageError
from pipeline.heartbeat import Silence
from pipeline.stage import Silent
from stages.runtimes import parity, registry
from stages.runtimes.base import Session, Source
from stages.runtimes.images import natural_images
from stages.runtimes.ncnn.convert import convert
from stages.runtimes.ncnn.trial import run_once
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import WithPreprocessing, source_of

RUNTIME = registry.get("ncnn")

pytestmark = [
    pytest.mark.process,  # pnnx converts in a process of its own
    pytest.mark.skipif(
        not RUNTIME.ability_to_build().can, reason=RUNTIME.ability_to_build().why_not or "ncnn"
    ),
]


def _built(source: Source, folder: Path) -> tuple[dict[str, Any], Session]:
    folder.mkdir()
    facts = RUNTIME.build(source, folder, BuildSettings(), Silent(), folder.parent / "work")
    return facts, RUNTIME.load(folder, source, 1)


class _Windows(nn.Module):
    """Attention-like windows, as a Swin transformer cuts them: a six-dimensional reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        windows = self.stem(images).permute(0, 2, 3, 1)
        windows = windows.view(-1, 3, 2, 3, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        windows = windows * windows.softmax(1)
        windows = windows.view(-1, 3, 3, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 36, 8)
        return self.head(windows.mean(1))


def _exported(network: nn.Module, file: Path, size: int) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithPreprocessing(network).eval(),
            (torch.zeros((2, size, size, 3), dtype=torch.uint8),),
            str(file),
            dynamo=False,
            opset_version=20,
            input_names=["input"],
            output_names=["logits", "probabilities"],
            dynamic_axes={edge: {0: "batch"} for edge in ("input", "logits", "probabilities")},
        )
    return replace(source_of("cnn"), onnx=file, image_shape=(size, size, 3))


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 0.01)])
def test_a_target_agrees_with_its_source(name: str, precision: str, limit: float, tmp_path: Path) -> None:
    source = source_of(name, precision)
    _, session = _built(source, tmp_path / "built")
    assert parity.check(session, source, (1, 2, 7), name).relative < limit


def test_a_plain_graph_gets_normalised_images(tmp_path: Path) -> None:
    source = source_of("mobilenet", preprocessing=False)
    _, session = _built(source, tmp_path / "built")
    assert parity.check(session, source, (1, 2), "plain").relative < 1e-5


def test_fp16_halves_the_weights_and_rounds(tmp_path: Path) -> None:
    full, half = source_of("cnn"), source_of("cnn", "fp16")
    facts, session = _built(half, tmp_path / "half")
    _, exact = _built(full, tmp_path / "full")
    sizes = {name: (tmp_path / name / "model.bin").stat().st_size for name in ("half", "full")}
    assert sizes["half"] < 0.6 * sizes["full"]
    assert facts["weights"] == "fp16"
    assert session.facts["effective_precision"].startswith("fp16")
    images = natural_images(full.image_shape, 4)
    assert (session.logits(images) != exact.logits(images)).any()


def test_facts_say_that_a_batch_is_a_loop(tmp_path: Path) -> None:
    source = source_of("cnn")
    facts, session = _built(source, tmp_path / "built")
    assert facts["batch_max"] == 1  # so measure times no larger one
    assert facts["batches"] == session.facts["batches"] == "one image at a time"
    assert facts["layers"] > 3
    assert (session.facts["effective_precision"], session.facts["threads"]) == ("fp32", 1)


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    source = source_of("mobilenet")
    for name in ("first", "second"):
        _built(source, tmp_path / name)
    for file in ("model.param", "model.bin"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert not [*(tmp_path / "work").iterdir()]


@pytest.mark.parametrize("preprocessing", [True, False])
def test_timed_calls_do_not_disturb_each_other(preprocessing: bool, tmp_path: Path) -> None:
    source = source_of("cnn", preprocessing=preprocessing)
    _, session = _built(source, tmp_path / "built")
    images = natural_images(source.image_shape, 3)
    expected = session.logits(images)
    calls = [session.timed(images[:1]), session.timed(images)]
    for call in (*calls, *calls):
        call()
    np.testing.assert_array_equal(session.logits(images), expected)


def test_a_network_with_a_layer_that_ncnn_does_not_have_is_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = _exported(_Windows(), tmp_path / "windows.onnx", 24)
    (tmp_path / "built").mkdir()
    with raises(StageError, what="ncnn cannot run this network") as caught:
        RUNTIME.build(source, tmp_path / "built", BuildSettings(), Silent(), tmp_path / "work")
    assert "ncnn has no layer for" in caught.value.why
    assert "\n" not in caught.value.why
    assert "leave the ncnn targets out" in caught.value.hint


def test_preprocessing_that_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    source = replace(source_of("cnn"), mean=(0.1, 0.1, 0.1))
    (tmp_path / "built").mkdir()
    with raises(StageError, what="cannot be cut off"):
        RUNTIME.build(source, tmp_path / "built", BuildSettings(), Silent(), tmp_path / "work")


def test_images_that_are_neither_grey_nor_rgb_are_refused(tmp_path: Path) -> None:
    source = replace(source_of("cnn"), image_shape=(24, 24, 4))
    with raises(StageError, what="grey or RGB"):
        RUNTIME.build(source, tmp_path, BuildSettings(), Silent(), tmp_path / "work")


@pytest.mark.parametrize("damage", ["layer", "weights", "gone"])
def test_a_damaged_target_is_an_error_and_not_a_crash(damage: str, tmp_path: Path) -> None:
    source = source_of("cnn")
    _built(source, tmp_path / "built")
    param, weights = tmp_path / "built" / "model.param", tmp_path / "built" / "model.bin"
    if damage == "layer":
        param.write_text(param.read_text().replace("InnerProduct", "NoSuchLayer "), encoding="ascii")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    else:
        weights.unlink()
    # In a process of its own, so that a crash is this test's failure and not pytest's end.
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.errors import StageError; from stages.runtimes import registry\n"
        "from stages.runtimes.base import Source\n"
        "source = Source(Path('x'), 'fp32', (24, 24, 3), 'uint8_nhwc', (0.5,) * 3, (0.5,) * 3)\n"
        "try: registry.get('ncnn').load(Path(sys.argv[1]), source, 1)\n"
        "except StageError as error: print(error.what, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "built")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ncnn cannot load a built target kdpipe build PROFILE"


def test_a_converter_that_hangs_is_ended_and_one_that_works_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for pnnx: it works for longer than it may be idle, then waits for ever."""
    place = tmp_path / "pnnx"
    place.mkdir()
    (place / "__init__.py").touch()
    program, worked = place / "pnnx", tmp_path / "worked"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, time\nwhile time.process_time() < 5: pass\n"
        f"pathlib.Path({str(worked)!r}).touch()\ntime.sleep(3600)\n"
    )
    program.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(heartbeat, "CPU_STEP_S", 0.02)  # a busy machine gives it a small share
    source = source_of("cnn")
    with raises(StageError, what="pnnx cannot convert") as caught:
        convert(onnx.load(source.onnx), source, tmp_path, tmp_path / "work", Silence(load_s=4.0))
    assert caught.value.why.startswith("it hung: converting: no progress and no CPU time used for")
    assert worked.exists()


def test_a_target_that_hangs_when_it_is_loaded_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ncnn.py").write_text("import time\ntime.sleep(1e6)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("model.param", "model.bin"):
        (tmp_path / name).write_bytes(b"")
    why_not = run_once(tmp_path, source_of("cnn"), Silence(load_s=2.0))
    assert why_not.startswith("ncnn hung: running it once: no progress and no CPU time used for")
