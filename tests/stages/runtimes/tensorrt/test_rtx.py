"""TensorRT for RTX builds real engines without a GPU; running them needs one (tests/gpu)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.child_process import HOME
from pipeline.errors import MachineCannot, StageError
from pipeline.stage import Silent
from stages.runtimes import probe
from stages.runtimes.base import Source
from stages.runtimes.images import natural_images
from stages.runtimes.parity import source_logits
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import build as tensorrt_build
from stages.runtimes.tensorrt import family as tensorrt_family
from stages.runtimes.tensorrt.classic import RUNTIME as CLASSIC
from stages.runtimes.tensorrt.rtx import RUNTIME
from tests.errors import raises
from tests.stages.runtimes.networks import exported, source_of

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.process  # the builder and every question to it run in processes of their own

HAS_GPU = not probe.cuda_device().get("error")
SETTINGS = BuildSettings(batch_min=1, batch_opt=2, batch_max=8, workspace_mb=256)


class RecordedProgress(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[float, float, dict[str, Any]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self.updates.append((done, total, figures))


def _build(source: Source, folder: Path, progress: RecordedProgress | None = None) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return RUNTIME.build(source, folder, SETTINGS, progress or RecordedProgress(), folder.parent / "work")


def _odd_model(operator: str, file: Path, domain: str = "") -> Source:
    node = helper.make_node(operator, ["input"], ["logits"], name="the_odd_one", domain=domain)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [info("logits", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 20)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(file))
    return replace(source_of("cnn", preprocessing=False), onnx=file)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cnn", "fp32"),
        ("cnn", "fp16"),
        ("cnn", "int8"),
        ("cnn", "bf16"),
        ("mobilenet", "fp16"),
        ("mobilenet", "bf16"),
        pytest.param("mobilenet", "fp32", marks=pytest.mark.slow),
        pytest.param("mobilenet", "int8", marks=pytest.mark.slow),
        pytest.param("vit", "fp32", marks=pytest.mark.slow),
        pytest.param("vit", "fp16", marks=pytest.mark.slow),
        pytest.param("vit", "bf16", marks=pytest.mark.slow),
        pytest.param("vit", "int8", marks=pytest.mark.slow),
    ],
)
def test_builds_a_real_engine(name: str, precision: str, tmp_path: Path) -> None:
    source = source_of(name, precision)
    progress = RecordedProgress()
    facts = _build(source, tmp_path / "built", progress)
    engine = (tmp_path / "built" / "model.engine").read_bytes()
    assert engine.startswith(b"vtrt")
    assert len(engine) > 10_000
    size = source.image_shape[0]
    three = {"min": [1, size, size, 3], "opt": [2, size, size, 3], "max": [8, size, size, 3]}
    assert facts["profile"] == {"input": three}
    sidecar = json.loads((tmp_path / "built" / "engine.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(engine).hexdigest()
    assert sidecar["package"] == "tensorrt_rtx"
    assert sidecar["precision"] == precision
    assert sidecar["strongly_typed"] is True
    assert sidecar["profile"] == facts["profile"]
    by_name = {tensor["name"]: tensor for tensor in sidecar["tensors"]}
    assert by_name["input"]["dtype"] == "uint8"
    assert by_name["logits"]["dtype"] == "float"
    if precision in ("fp16", "bf16"):
        assert facts[precision][f"{precision}_nodes"] > 5
    assert sorted(file.name for file in (tmp_path / "built").iterdir()) == ["engine.json", "model.engine"]
    assert str(tmp_path) not in json.dumps([facts, sidecar])
    assert any(figures["phase"].startswith("Building engine") for _, _, figures in progress.updates)
    assert all(0 <= done <= total for done, total, _ in progress.updates)
    assert facts["engine_layers"] is None or HAS_GPU
    assert facts["tuned_for_batch"] == 2
    assert next(iter(json.loads((tmp_path / "work" / "durations.json").read_text()).values())) > 0


def test_fp16_engine_is_smaller(tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        _build(source_of("mobilenet", precision), tmp_path / precision)
    sizes = [(tmp_path / name / "model.engine").stat().st_size for name in ("fp32", "fp16")]
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.parametrize("preprocessing", [True, False])
def test_the_graph_handed_over_computes_the_same(preprocessing: bool) -> None:
    source = source_of("cnn", preprocessing=preprocessing)
    model, _ = tensorrt_family.prepare(source)
    images = natural_images(source.image_shape, 3)
    logits = source_logits(model.SerializeToString(), source, images)
    np.testing.assert_array_equal(logits, source_logits(source.onnx, source, images))


@pytest.mark.parametrize(
    ("operator", "domain"), [("Det", ""), ("Bogus", "my.operators")], ids=["of onnx", "of nobody"]
)
def test_an_unsupported_operator_is_named(operator: str, domain: str, tmp_path: Path) -> None:
    source = _odd_model(operator, tmp_path / "odd.onnx", domain)
    with raises(StageError, what="refuses the file") as caught:
        _build(source, tmp_path / "built")
    assert f"operator {operator} unsupported" in caught.value.why
    assert "the_odd_one" in caught.value.why
    assert caught.value.where == "odd.onnx"


def test_an_int8_file_of_the_other_recipe_is_refused_with_the_parsers_words(tmp_path: Path) -> None:
    with raises(StageError, what="refuses the file") as caught:
        _build(source_of("cnn", "int8", "x86"), tmp_path / "built")
    assert "(DequantizeLinear)" in caught.value.why
    assert "Int32" in caught.value.why
    assert "at node network.0.weight_bias_DequantizeLinear" in caught.value.why
    assert len(caught.value.why) < 5 * 310
    assert "`signed` file" in caught.value.hint


def test_garbage_is_a_stage_error(tmp_path: Path) -> None:
    specification = tensorrt_build.Specification(
        "tensorrt_rtx", str(tmp_path / "e"), "", (1, 1, 2), 64, 3, device=False
    )
    with pytest.raises(StageError):
        tensorrt_build.build(specification, b"not a model", lambda **_message: None)


def test_an_open_image_size_is_refused(tmp_path: Path) -> None:
    source = source_of("cnn", preprocessing=False)
    model = onnx.load(str(source.onnx))
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, str(tmp_path / "open.onnx"))
    with raises(StageError, what="size of images open"):
        _build(replace(source, onnx=tmp_path / "open.onnx"), tmp_path / "built")


def test_a_file_of_one_batch_is_refused_with_the_remedy(tmp_path: Path) -> None:
    source = source_of("cnn", preprocessing=False)
    model = onnx.load(str(source.onnx))
    del model.graph.value_info[:]
    for edge in (*model.graph.input, *model.graph.output):
        edge.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(tmp_path / "fixed.onnx"))
    fixed = replace(source, onnx=tmp_path / "fixed.onnx")
    with raises(StageError, what="takes only batches of 2") as caught:
        _build(fixed, tmp_path / "built")
    assert "--set build.batch_max=2" in caught.value.hint
    assert caught.value.where == "fixed.onnx, input input"
    (tmp_path / "whole").mkdir()
    settings = BuildSettings(batch_min=2, batch_opt=2, batch_max=2, workspace_mb=256)
    RUNTIME.build(fixed, tmp_path / "whole", settings, RecordedProgress(), tmp_path / "work")
    assert (tmp_path / "whole" / "model.engine").is_file()


def test_the_gpus_of_an_engine_are_named_and_checked(tmp_path: Path) -> None:
    def build(*names: str) -> dict[str, Any]:
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        settings = SETTINGS.model_copy(update={"rtx_compute_capabilities": list(names)})
        RUNTIME.build(source_of("cnn"), folder, settings, RecordedProgress(), tmp_path / "work")
        sidecar: dict[str, Any] = json.loads((folder / "engine.json").read_text())
        return sidecar

    assert build("SM86", "SM89")["rtx_compute_capabilities"] == ["SM86", "SM89"]
    with raises(StageError, what="has no SM70") as caught:
        build("SM70")
    assert "SM86" in caught.value.why
    with raises(StageError, what="cannot be combined"):
        build("CURRENT", "SM80")
    with raises(StageError, what="built no engine") as caught:
        build("SM75")
    assert "Turing" in caught.value.why


@pytest.mark.parametrize("key", ["refit", "version_compatible"])
def test_what_it_cannot_do_is_refused_before_building(key: str, tmp_path: Path) -> None:
    settings = BuildSettings(**{key: True, "trust_engine_host_code": True})
    progress = RecordedProgress()
    with raises(StageError, what="cannot build this engine"):
        RUNTIME.build(source_of("cnn"), tmp_path, settings, progress, tmp_path / "work")
    assert progress.updates == []
    assert list(tmp_path.iterdir()) == []


def _package(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A TensorRT package whose import does what `code` says; its name."""
    name = f"odd_sdk_{abs(hash(code))}"
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    return name


def test_a_crash_of_the_builder_is_a_stage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; print('about to fall', file=sys.stderr, flush=True); os.abort()"
    name = _package(tmp_path, code, monkeypatch)
    (tmp_path / "built").mkdir()
    with raises(StageError, what="ended its process") as caught:
        tensorrt_family.build(
            name, source_of("cnn"), tmp_path / "built", SETTINGS, Silent(), tmp_path, keeps_timings=False
        )
    assert "ended by SIGABRT" in caught.value.why
    assert "about to fall" in caught.value.why
    assert caught.value.where.endswith(".onnx")


def test_a_package_that_is_missing_or_raises_is_a_stage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "built").mkdir()

    def build(name: str) -> StageError:
        with pytest.raises(StageError) as caught:
            tensorrt_family.build(
                name, source_of("cnn"), tmp_path / "built", SETTINGS, Silent(), tmp_path, keeps_timings=False
            )
        return caught.value

    missing = build("tensorrt_of_nobody")
    assert missing.what == "the package tensorrt_of_nobody cannot be imported"
    assert "pip install" in missing.hint
    code = "__version__ = '9'\nclass ILogger:\n    def __init__(self): raise MemoryError('no room')"
    starved = build(_package(tmp_path, code, monkeypatch))
    assert starved.why == "MemoryError: no room"
    assert "--set build.workspace_mb=256" in starved.hint


def test_a_crash_while_asking_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; __version__ = '9'; sys.stderr.write('falling\\n'); sys.stderr.flush(); os.abort()"
    name = _package(tmp_path, code, monkeypatch)
    ability = tensorrt_family.ability(name, "pip install it", to_run=False, builds_on_gpu=True)
    assert not ability.can
    assert "status -6" in ability.why_not


def test_a_package_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _package(tmp_path, "raise ImportError('libnvonnxparser.so.11 is missing')", monkeypatch)
    ability = tensorrt_family.ability(name, "pip install it", to_run=False, builds_on_gpu=True)
    assert "libnvonnxparser.so.11" in ability.why_not
    assert ability.hint == "pip install it"


def test_a_version_that_is_too_old_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from tensorrt_rtx import *\n__version__ = '10.3.0'\n"
    name = _package(tmp_path, code, monkeypatch)
    monkeypatch.setitem(tensorrt_family.OLDEST, name, tensorrt_family.OLDEST["tensorrt"])
    ability = tensorrt_family.ability(name, "pip install it", to_run=False, builds_on_gpu=True)
    assert not ability.can
    assert ability.why_not == f"{name} 10.3.0 is older than 10.12"


def test_it_can_build_here() -> None:
    ability = RUNTIME.ability_to_build()
    assert ability.can, ability.why_not
    assert ability.versions["tensorrt_rtx"][0].isdigit()


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_why_it_cannot_run() -> None:
    ability = RUNTIME.ability_to_run()
    assert not ability.can
    assert "driver" in ability.why_not
    assert "GPU" in ability.hint


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_loading_without_a_gpu_does_not_crash(tmp_path: Path) -> None:
    with raises(MachineCannot, what="needs an NVIDIA GPU"):
        RUNTIME.load(tmp_path, source_of("cnn"), 1)


def test_classic_tensorrt_takes_the_same_path(tmp_path: Path) -> None:
    """The classic SDK's module name, with the other SDK behind it: the calls are the same."""
    (tmp_path / "site" / "tensorrt").mkdir(parents=True)
    stand_in = "from tensorrt_rtx import *\n__version__ = '11.4.0.106'\n"
    (tmp_path / "site" / "tensorrt" / "__init__.py").write_text(stand_in, encoding="utf-8")
    code = f"""
import json, sys
from pathlib import Path
from pipeline.stage import Silent
from stages.runtimes.base import Source
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt.classic import RUNTIME
ability = RUNTIME.ability_to_build()
output = Path({str(tmp_path)!r}) / "built"
output.mkdir()
source = Source(Path({str(exported("cnn"))!r}), "fp16", (24, 24, 3), "uint8_nhwc", (.45,) * 3, (.25,) * 3)
facts = RUNTIME.build(source, output, BuildSettings(workspace_mb=256), Silent(), output.parent / "work")
print(json.dumps([ability.can, ability.why_not, facts]))
"""
    paths = os.pathsep.join([str(tmp_path / "site"), str(HOME)])
    done = _python(code, {**os.environ, "PYTHONPATH": paths})
    can, why_not, facts = json.loads(done.splitlines()[-1])
    assert can, why_not
    assert facts["portable"].startswith("this GPU model")
    assert json.loads((tmp_path / "built" / "engine.json").read_text())["package"] == "tensorrt"


def _python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classic_tensorrt_that_is_not_installed_says_how_to_get_it() -> None:
    ability = CLASSIC.ability_to_build()
    if ability.can:
        pytest.skip("the tensorrt package is installed and works here")
    assert ability.hint
    if "not installed" in ability.why_not:
        assert ability.hint == "pip install 'kdpipe[tensorrt]'"
        assert HAS_GPU or "no NVIDIA GPU" in ability.why_not
