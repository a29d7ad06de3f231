"""The public Python API, with real runs of a tiny profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdpipe
from tests.command import environment, write_profile
from tests.command import kdpipe as command_line
from tests.errors import raises
from tests.processes import starts_processes
from tests.stages.line import TINY

LINE = ["train", "distill", "evaluate", "export", "quantize", "build", "measure", "gate", "package", "report"]
PROFILE: dict[str, Any] = {
    **TINY,
    "train": {**TINY["train"], "epochs": 1},
    "distill": {**TINY["distill"], "epochs": 1, "methods": [{"name": "kd"}]},
    "targets": ["onnxruntime-fp32", "onnxruntime-int8"],
}
IMPOSSIBLE = [{"metric": "accuracy", "min": 100}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library") / "store"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile(tmp_path_factory.mktemp("profile") / "tiny.yaml", PROFILE)


@pytest.fixture(scope="module")
@starts_processes  # the stage measure
def run(profile: Path, store: Path) -> kdpipe.Run:
    return kdpipe.run(profile, store=store, progress=False)


@pytest.fixture(autouse=True)
def nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr().out == ""


def python(program: str, *, cwd: Path, block: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own. block: a package that cannot be imported there."""
    blocked = f"import sys; sys.modules[{block!r}] = None\n" if block else ""
    return subprocess.run(
        [sys.executable, "-c", blocked + program],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=cwd,
    )


def test_the_import_is_light(tmp_path: Path) -> None:
    heavy = "torch numpy pydantic yaml onnx onnxruntime timm sklearn pandas click"
    program = f"import kdpipe, sys; print([name for name in {heavy.split()!r} if name in sys.modules])"
    finished = python(program, cwd=tmp_path)
    assert finished.stdout == "[]\n", finished.stderr


def test_everything_public_exists_and_has_a_docstring() -> None:
    for name in kdpipe.__all__:
        value = getattr(kdpipe, name)
        assert name == "__version__" or value.__doc__, name


def test_a_run_has_every_stage_with_its_artefact(run: kdpipe.Run) -> None:
    assert [stage.name for stage in run.stages] == LINE
    assert {stage.status for stage in run.stages} == {"ran"}
    for stage in run.stages:
        assert stage.path is not None
        assert (stage.path / "artefact.json").is_file()
        assert stage.seconds > 0
        assert [reason.kind for reason in stage.reasons] == ["absent"]
    assert run.stage("train").metrics["val_top1"] > 0
    assert (run.exit_code, run.error, run.is_complete) == (0, None, True)
    run.raise_for_result()
    with pytest.raises(KeyError):
        run.stage("trian")


def test_the_scorecard_is_that_of_the_command_line(run: kdpipe.Run, profile: Path, store: Path) -> None:
    document = json.loads(command_line("run", profile, "--store", store, "--json").stdout)
    assert {stage["status"] for stage in document["stages"]} == {"hit"}
    assert [stage["digest"] for stage in document["stages"]] == [stage.digest for stage in run.stages]
    folder = next(stage["path"] for stage in document["stages"] if stage["name"] == "measure")
    rows = json.loads((Path(folder) / "scorecard.json").read_text(encoding="utf-8"))["rows"]
    assert len(run.scorecard) == len(rows) == 3
    for row, expected in zip(run.scorecard, rows, strict=True):
        assert row.details == expected
        assert row.top1 == expected["top1"]
        assert row.p50_ms == expected["latency"][0]["p50_ms"]
        assert row.latency[1].batch == 4
    assert run.scorecard.baseline.model == "teacher"
    assert run.scorecard["onnxruntime-int8"].precision == "int8"
    assert "onnxruntime-int8" in repr(run.scorecard)
    with pytest.raises(KeyError):
        run.scorecard["tensorrt-fp16"]


def test_a_data_frame_needs_pandas_and_the_rows_do_not(run: kdpipe.Run, profile: Path, store: Path) -> None:
    program = (
        f"import kdpipe; run = kdpipe.run({str(profile)!r}, store={str(store)!r}, progress=False)\n"
        "assert run.scorecard.rows[0].top1 > 0\n"
        "try: run.scorecard.to_dataframe()\n"
        "except kdpipe.KdpipeError as error: print(error.hint)"
    )
    finished = python(program, cwd=store.parent, block="pandas")
    assert finished.stdout.startswith("pip install pandas"), finished.stderr
    pandas = pytest.importorskip("pandas")
    frame = run.scorecard.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.target) == [row.target for row in run.scorecard]
    assert list(frame.p50_ms) == [row.p50_ms for row in run.scorecard]


def test_what_people_want_in_their_hands_has_a_path(run: kdpipe.Run) -> None:
    assert run.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run.bundle.name == "tiny.tar.zst"
    assert run.bundle.is_file()
    assert {"student", "teacher"} < set(run.onnx)
    assert any("int8" in name for name in run.onnx)
    assert all(file.is_file() for file in run.onnx.values())
    assert (run.artefact("build") / "build.json").is_file()
    assert run.pick.target in ("onnxruntime-fp32", "onnxruntime-int8")
    assert run.pick.reason
    assert set(run.pick.rejected) | {run.pick.target} == {"onnxruntime-fp32", "onnxruntime-int8"}
    assert run.gates == ()
    assert run.metrics["student"]["top1"] > 0
    assert run.classes == tuple("0123456789")


def test_the_networks_are_those_that_were_exported(run: kdpipe.Run) -> None:
    import onnxruntime
    import torch

    images = np.load(run.artefact("export") / "images.npy")
    networks = {"student": run.student(), "teacher": run.teacher()}
    for name, network in networks.items():
        assert not network.training
        with torch.inference_mode():
            logits = network(run.preprocess(images, name)).numpy()  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(run.onnx[name], providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(["logits"], {"input": images})[0], logits, atol=1e-3)
    alone = run.baseline().state_dict()
    assert any(
        not torch.equal(tensor, alone[name]) for name, tensor in networks["student"].state_dict().items()
    )
    assert run.preprocessing().image_size == 16


def test_images_of_any_size_are_preprocessed(run: kdpipe.Run, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    from_file, from_array = run.preprocess([tmp_path / "image.png", pixels])
    assert from_file.shape == (1, 16, 16)
    assert from_file.equal(from_array)
    assert run.preprocess([]).shape == (0, 1, 16, 16)
    with raises(kdpipe.DataError, where=r"missing\.png"):
        run.preprocess([tmp_path / "missing.png"])
    with raises(kdpipe.DataError, why="float64"):
        run.preprocess([np.zeros((16, 16))])


def test_an_unchanged_run_is_cached_and_a_changed_one_gives_reasons(
    run: kdpipe.Run, profile: Path, store: Path
) -> None:
    assert kdpipe.plan(profile, store=store).is_cached
    changed = kdpipe.plan(profile, store=store, set={"measure.duration_s": 0.2})
    assert [stage.name for stage in changed.stale] == ["measure", "gate", "package", "report"]
    assert changed["measure"].reasons == (kdpipe.Reason("profile", "measure.duration_s", 0.1, 0.2),)
    assert changed["train"].digest == run.stage("train").digest
    assert len(changed) == len(LINE)
    assert "measure.duration_s: 0.1 to 0.2" in repr(changed)
    assert kdpipe.plan(profile, store=store, force=["report"]).stale[0].reasons[0].kind == "forced"


def test_values_of_every_type_can_be_set(profile: Path, store: Path) -> None:
    planned = kdpipe.plan(
        profile,
        store=store,
        set={
            "name": "5",
            "train.epochs": np.int64(3),
            "distill.methods": [{"name": "kd", "temperature": 2.5}],
            "teacher.checkpoint": None,
        },
    )
    assert planned["train"].reasons == (kdpipe.Reason("profile", "train.epochs", 1, 3),)
    with raises(kdpipe.UsageError, what=r"train\.epochs"):
        kdpipe.plan(profile, store=store, set={"train.epochs": object()})
    with raises(kdpipe.UsageError, what="force"):
        kdpipe.run(profile, store=store, force="train")


@pytest.mark.usefixtures("run")
def test_a_missed_gate_raises_with_the_whole_run(profile: Path, store: Path) -> None:
    with pytest.raises(kdpipe.GateMissed) as caught:
        kdpipe.run(profile, store=store, set={"gates": IMPOSSIBLE}, progress=False)
    run = caught.value.run
    assert isinstance(run, kdpipe.Run)
    assert run.is_complete
    assert run.exit_code == 3
    assert {gate.status for gate in run.gates} == {"missed"}
    assert all(gate.metric == "accuracy" and gate.limit == 100 for gate in run.gates)
    assert run.pick.target is None
    assert run.report.is_file()
    assert len(run.scorecard) == 3


@pytest.mark.usefixtures("run")
def test_a_missed_gate_is_returned_if_it_is_not_checked(profile: Path, store: Path) -> None:
    run = kdpipe.run(profile, store=store, set={"gates": IMPOSSIBLE}, check=False, progress=False)
    assert isinstance(run.error, kdpipe.GateMissed)
    assert run.gates[0].message in str(run)
    with pytest.raises(kdpipe.GateMissed):
        run.raise_for_result()


def test_a_failed_stage_carries_the_stages_so_far(profile: Path, tmp_path: Path) -> None:
    values = {"train.epochs": 1, "train.learning_rate": 1e30, "train.warmup_epochs": 0}
    with pytest.raises(kdpipe.KdpipeError) as caught:
        kdpipe.run(profile, store=tmp_path / "store", set=values, check=False, progress=False)
    error = caught.value
    assert error.what
    assert error.hint
    run = error.run
    assert [stage.status for stage in run.stages] == ["failed", *["skipped"] * 9]
    assert not run.is_complete
    with raises(kdpipe.UsageError, what="no artefact of stage measure"):
        _ = run.scorecard


def test_an_invalid_profile_leaves_nothing(tmp_path: Path) -> None:
    file = write_profile(tmp_path / "wrong.yaml", {**PROFILE, "trian": {}})
    with pytest.raises(kdpipe.ProfileError) as caught:
        kdpipe.run(file, store=tmp_path / "store")
    assert caught.value.faults[0].key == "trian"
    assert caught.value.run is None
    assert not (tmp_path / "store").exists()


def test_a_run_works_in_a_thread_and_prints_on_standard_error(
    run: kdpipe.Run, profile: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results: list[kdpipe.Run] = []
    threads = [
        threading.Thread(target=lambda: results.append(kdpipe.run(profile, store=store, until="evaluate")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("after", file=sys.stderr)
    assert [len(result.stages) for result in results] == [3, 3]
    assert {stage.status for result in results for stage in result.stages} == {"hit"}
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("distill") == 2
    assert captured.err.endswith("after\n")
    os.write(1, b"still standard output")
    assert capfd.readouterr().out == "still standard output"
    kdpipe.run(profile, store=store, until="evaluate", progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.long
def test_methods_are_compared(profile: Path, store: Path) -> None:
    comparison = kdpipe.compare(
        profile,
        methods={"soft": [{"name": "kd", "temperature": 2}]},
        seeds=[0, 3],
        store=store,
        split="validation",
        progress=False,
    )
    assert {method.label for method in comparison} == {"student alone", "soft"}
    assert comparison.reference == "student alone"
    assert comparison["soft"].seeds == (0, 3)
    assert comparison["soft"].gain_points is not None
    assert comparison["student alone"].verdict is None
    assert [(each.label, each.seed) for each in comparison.runs].count(("soft", 3)) == 1
    assert all(
        each.path is not None and (each.path / "model.safetensors").is_file() for each in comparison.runs
    )
    assert comparison.page.is_file()
    assert comparison.answer in repr(comparison)
    assert_is_a_table(comparison._repr_html_(), "soft")
    with raises(kdpipe.UsageError, what="nothing to compare"):
        kdpipe.compare(profile, methods=["kd"], baseline=False, store=store)
    with raises(kdpipe.UsageError, what="seed"):
        kdpipe.compare(profile, methods=["kd"], seeds=0, store=store)


def test_methods_are_listed_with_their_settings() -> None:
    methods = {method.name: method for method in kdpipe.methods()}
    assert {"kd", "msdcrd", "crd"} <= set(methods)
    temperature = methods["kd"].settings["temperature"]
    assert temperature.default == 4.0
    assert temperature.expected == "a number above 0"
    for method in methods.values():
        assert method.summary
        assert all(setting.help for setting in method.settings.values()), method.name


def test_notebooks_show_escaped_tables(run: kdpipe.Run, profile: Path, store: Path) -> None:
    assert_is_a_table(run._repr_html_(), "measure")
    assert_is_a_table(run.scorecard._repr_html_(), "onnxruntime-int8")
    planned = kdpipe.plan(profile, store=store, set={"teacher.model": "<script>alert(1)</script>"})
    assert_is_a_table(planned._repr_html_(), "<script>alert(1)</script>")


def assert_is_a_table(html: str, text: str) -> None:
    """A table with this text, and no element that loads or runs anything."""
    tags: set[str] = set()
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert not attributes
            tags.add(tag)

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(html)
    assert {"table", "th", "td"} <= tags <= {"table", "thead", "tbody", "tr", "th", "td", "br", "p"}
    assert any(text in data for data in texts), html


def test_a_hidden_package_is_reported_where_a_name_is_used(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')\n", encoding="utf-8")
    program = (
        "import kdpipe\n"
        "try: kdpipe.run\n"
        "except ImportError as error: print(error)\n"
        "try: kdpipe.unknown\n"
        "except AttributeError as error: print(error)"
    )
    finished = python(program, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    hidden, unknown = finished.stdout.splitlines()
    assert "another Python package named pipeline hides" in hidden
    assert str(tmp_path / "pipeline.py") in hidden
    assert "no attribute 'unknown'" in unknown
