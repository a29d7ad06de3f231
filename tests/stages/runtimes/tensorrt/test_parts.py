"""What surrounds TensorRT's builder: options, progress, failures, timings, inspector. No GPU."""

from __future__ import annotations

import io
import json
import queue
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.console.console import Console
from pipeline.console.progress import ConsoleListener, Rhythm
from pipeline.errors import StageError, UsageError
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import build as tensorrt_build
from stages.runtimes.tensorrt import faults as tensorrt_faults
from stages.runtimes.tensorrt import inspector as tensorrt_inspector
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.runtimes.tensorrt import process as tensorrt_process
from stages.runtimes.tensorrt import timings as tensorrt_timings
from stages.runtimes.tensorrt.options import Options
from stages.runtimes.tensorrt.phases import Phases, remaining_s
from tests.errors import raises
from tests.stages.runtimes import sdk_stand_in
from tests.stages.runtimes.networks import exported

VERSIONS = ["10.12.0.36", "11.4.0.106"]


class RecordedProgress:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[float, float, dict[str, Any]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self.updates.append((done, total, figures))


def _specification(folder: Path, package: str, **changes: Any) -> tensorrt_build.Specification:
    plain = tensorrt_build.Specification(
        package, str(folder / "model.engine"), str(folder / "timings"), (1, 4, 8), 64, 3, device=True
    )
    return replace(plain, **changes)


@pytest.fixture(params=VERSIONS)
def sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = sdk_stand_in.sdk(request.param)
    monkeypatch.setitem(sys.modules, "sdk_of_the_vendor", module)
    return module


def _built(folder: Path, messages: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    specification = _specification(folder, "sdk_of_the_vendor", **changes)
    heard = messages if messages is not None else []
    return tensorrt_build.build(
        specification, exported("cnn").read_bytes(), lambda **message: heard.append(message)
    )


@pytest.mark.long
def test_both_generations_build_strongly_typed_with_a_profile(sdk: SimpleNamespace, tmp_path: Path) -> None:
    messages: list[Any] = []
    facts = _built(tmp_path, messages)
    (config,) = sdk.built
    assert config.workspace == 64 * 2**20
    assert config.flags == []
    assert config.cleared == ["TF32"], "it is on unless it is cleared, and fp32 would not be fp32"
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.profiles == [{"input": ((1, 24, 24, 3), (4, 24, 24, 3), (8, 24, 24, 3))}]
    assert facts["version"] == sdk.__version__
    assert facts["profile"]["input"]["opt"] == [4, 24, 24, 3]
    assert [message for message in messages if "progress" in message]


def test_both_generations_take_the_options(sdk: SimpleNamespace, tmp_path: Path) -> None:
    _built(tmp_path, options=Options(refit=True, version_compatible=True, hardware_compatible="ampere_plus"))
    (config,) = sdk.built
    assert config.flags == ["REFIT", "VERSION_COMPATIBLE"]
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"


def test_both_generations_tell_their_layers(sdk: SimpleNamespace, tmp_path: Path) -> None:
    summary = _built(tmp_path)["engine_layers"]
    assert summary["layers"] == 3
    assert summary["by_kind"] == {"CaskConvolution": 1, "Reformat": 1, "gemm": 1}
    assert summary["by_type"] == {"fp16": 1, "fp32": 2}
    # The convolution writes floats and computes in INT8.
    assert summary["weighted"] == {"fp16": 1, "int8": 1}
    assert summary["weighted_in_floats"] == 1
    assert summary["weighted_in_floats_named"] == ["node_linear"]


def test_a_version_compatible_engine_tells_its_layers_too(sdk: SimpleNamespace, tmp_path: Path) -> None:
    summary = _built(tmp_path, options=Options(version_compatible=True))["engine_layers"]
    assert summary["layers"] == 3


def test_timings_are_kept_taken_over_and_refused(sdk: SimpleNamespace, tmp_path: Path) -> None:
    assert _built(tmp_path)["timings_reused"] is False
    timings = tmp_path / "timings"
    assert timings.read_bytes().startswith(sdk.__version__.encode())
    assert _built(tmp_path)["timings_reused"] is True
    timings.write_bytes(b"8.6 another GPU")
    messages: list[Any] = []
    assert _built(tmp_path, messages)["timings_reused"] is False
    assert ["another GPU" in message["note"] for message in messages if "note" in message] == [True]
    assert timings.read_bytes().startswith(sdk.__version__.encode()), "written anew"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.engine", "timings"]


def test_timings_that_another_build_reads_stay_whole(sdk: SimpleNamespace, tmp_path: Path) -> None:
    _built(tmp_path)
    with (tmp_path / "timings").open("rb") as reading:
        (tmp_path / "timings").write_bytes(b"8.6 another GPU, and longer than what comes")
        _built(tmp_path)
        assert reading.read() == b"8.6 another GPU, and longer than what comes"


def test_an_engine_outlives_timings_that_cannot_be_kept(sdk: SimpleNamespace, tmp_path: Path) -> None:
    messages: list[Any] = []
    assert _built(tmp_path, messages, timings=str(tmp_path / "gone" / "timings"))["engine_layers"]
    (note,) = [message["note"] for message in messages if "note" in message]
    assert note.startswith("the timings cannot be kept: ")


def test_an_option_that_the_version_does_not_know_is_told(sdk: SimpleNamespace, tmp_path: Path) -> None:
    with raises(StageError, what="has no SAME_AS_YESTERDAY") as caught:
        _built(tmp_path, options=Options(hardware_compatible="same_as_yesterday"))
    assert "AMPERE_PLUS" in caught.value.why
    assert caught.value.where == "build.hardware_compatible"


def test_layers_told_by_name_alone_are_counted() -> None:
    names = json.dumps({"Layers": ["conv1 + relu1", "head"]})
    assert tensorrt_inspector.summary(names)["layers"] == 2
    assert tensorrt_inspector.summary("no JSON")["layers"] == 0


def test_many_float_layers_are_counted_but_not_all_named() -> None:
    layers = [{**sdk_stand_in.GEMM_10, "Metadata": f"[ONNX Layer: n{index}]"} for index in range(25)]
    summary = tensorrt_inspector.summary(json.dumps({"Layers": layers}))
    assert summary["weighted_in_floats"] == 25
    assert summary["weighted_in_floats_named"] == [f"n{index}" for index in range(20)]


@pytest.mark.parametrize("type_text", ["UInt8", "Row major linear UINT8 format"])
def test_images_are_not_int8(type_text: str) -> None:
    fields = {
        "Name": "images",
        "LayerType": "Reformat",
        "Outputs": [{"Name": "input", "DataType": type_text}],
    }
    assert tensorrt_inspector.summary(json.dumps({"Layers": [fields]}))["by_type"] == {"uint8": 1}


# What a profile may ask


def test_what_rtx_cannot_do_is_refused_with_the_reason() -> None:
    fields = {
        "refit": True,
        "version_compatible": True,
        "trust_engine_host_code": True,
        "hardware_compatible": "ampere_plus",
    }
    settings = BuildSettings(**fields).model_dump()
    with raises(StageError, what="cannot build this engine") as caught:
        tensorrt_options.options_of("tensorrt_rtx", settings)
    assert caught.value.where == "build.refit, build.version_compatible, build.hardware_compatible"
    for word in ("driver", "lean runtime", "rtx_compute_capabilities"):
        assert word in caught.value.why
    assert "--set build.refit=false" in caught.value.hint
    assert "--set build.hardware_compatible=none" in caught.value.hint
    classic = tensorrt_options.options_of("tensorrt", settings)
    assert classic == Options(True, True, "ampere_plus")


def test_settings_that_no_target_can_follow_are_a_usage_error() -> None:
    settings = BuildSettings(refit=True).model_dump()
    with raises(UsageError, what="no target of the profile can follow these settings"):
        tensorrt_options.check_targets(["onnxruntime", "tensorrt_rtx"], settings)
    tensorrt_options.check_targets(["tensorrt", "tensorrt_rtx"], settings)
    tensorrt_options.check_targets(["tensorrt_rtx"], BuildSettings().model_dump())


def test_host_code_needs_consent() -> None:
    with pytest.raises(ValueError, match="trust_engine_host_code: true"):
        BuildSettings(version_compatible=True)


def test_a_compute_capability_has_its_form() -> None:
    with pytest.raises(ValueError, match="rtx_compute_capabilities"):
        BuildSettings(rtx_compute_capabilities=["8.6"])


# How far a build is


def test_nested_phases_give_one_share_that_never_falls() -> None:
    phases = Phases()
    phases.start("Building engine", None, 4)
    phases.step("Building engine", 0)
    assert phases.share == 0.25
    phases.start("Timing", "Building engine", 2)
    phases.step("Timing", 0)
    assert phases.share == 0.375
    assert (phases.current, phases.steps()) == ("Timing", (1, 2))
    phases.start("Inner", "Timing", 2)
    phases.step("Inner", 0)
    assert phases.share == pytest.approx(0.4375)
    phases.finish("Inner")
    phases.finish("Timing")
    phases.start("Timing", "Building engine", 10)
    phases.step("Timing", 0)
    assert phases.share == pytest.approx(0.4375), "the second round of a phase does not undo the first"
    phases.step("Building engine", 3)
    assert phases.share == 1.0
    phases.finish("Building engine")
    phases.step("Building engine", 0)  # of a phase that is over
    assert phases.share == 1.0


def test_the_builder_may_tell_from_many_threads(sdk: SimpleNamespace, tmp_path: Path) -> None:
    messages: list[Any] = []
    _built(tmp_path, messages)
    monitor = sdk.built[0].progress_monitor
    monitor.phase_start("Building engine", None, 4)
    faults: list[Exception] = []
    over = threading.Event()

    def report_phase(name: str) -> None:
        while not over.is_set():
            try:
                monitor.phase_start(name, "Building engine", 3)
                assert all(monitor.step_complete(name, step) for step in range(3))
                monitor.phase_finish(name)
            except Exception as fault:
                faults.append(fault)
                return

    threads = [threading.Thread(target=report_phase, args=(f"Timing {number}",)) for number in range(4)]
    every_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        over.wait(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(every_s)
    assert faults == []
    assert all(
        0 <= share <= 1
        for *_, share in (message["progress"] for message in messages if "progress" in message)
    )


phase_names = st.sampled_from("abcd")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("start"), phase_names, st.one_of(st.none(), phase_names), st.integers(-1, 5)),
            st.tuples(st.just("step"), phase_names, st.integers(0, 9)),
            st.tuples(st.just("finish"), phase_names),
        ),
        max_size=30,
    )
)
def test_whatever_the_builder_tells_the_share_stays_one(events: list[tuple[Any, ...]]) -> None:
    phases, last = Phases(), 0.0
    for verb, name, *rest in events:
        if verb == "start" and rest[0] is not None and rest[0] >= name:
            rest[0] = None  # a phase does not lie in itself
        getattr(phases, verb)(name, *rest)
        assert last <= phases.share <= 1.0
        last = phases.share
        done, steps = phases.steps()
        assert 0 <= done <= steps


def test_time_to_go() -> None:
    assert remaining_s(0.0, 1.0, earlier_s=60.0) == 59.0
    assert remaining_s(0.5, 90.0, earlier_s=60.0) == pytest.approx(90.0), (
        "longer than before: the steps count"
    )
    assert remaining_s(0.05, 90.0, None) is None
    assert remaining_s(0.5, 0.5, None) is None
    assert remaining_s(0.25, 10.0, None) == pytest.approx(30.0)


def test_a_silent_builder_is_told_to_be_at_work() -> None:
    lines: queue.Queue[bytes | None] = queue.Queue()
    progress = RecordedProgress()
    lines.put(json.dumps({"progress": ["Timing", 3, 40, 0.35]}).encode())
    threading.Timer(0.35, lambda: lines.put(b'{"done": {"a": 1}}')).start()
    outcome = tensorrt_process.follow(lines, "tensorrt-fp16", progress, earlier_s=None, heartbeat_s=0.05)
    assert outcome == {"done": {"a": 1}}
    assert len(progress.updates) >= 3
    for done, total, figures in progress.updates:
        assert (done, total) == (35.0, 100.0)
        assert figures["phase"] == "Timing 3/40"
        assert figures["target"] == "tensorrt-fp16"
        assert figures["elapsed"].endswith(" s")
        assert figures["eta_s"] == "", "there is no estimate yet"


def test_the_last_builds_duration_gives_the_time_to_go() -> None:
    lines: queue.Queue[bytes | None] = queue.Queue()
    progress = RecordedProgress()
    for message in ({"progress": ["Timing", 0, 40, 0.0]}, {"note": "timing anew"}):
        lines.put(json.dumps(message).encode())
    lines.put(None)
    assert tensorrt_process.follow(lines, "t", progress, earlier_s=100.0) == {}
    assert progress.updates[0][2]["eta_s"] == pytest.approx(100.0, abs=5.0)
    assert progress.notes == ["t: timing anew"]


def test_the_log_line_has_phase_elapsed_and_eta() -> None:
    shown = io.StringIO()
    console = Console(out=io.StringIO(), err=shown)
    rhythm = Rhythm(look_s=0.02, plain_s=0.1, plain_apart_s=0.01)
    with ConsoleListener(console, ("build",), rhythm) as listener:
        lines: queue.Queue[bytes | None] = queue.Queue()
        lines.put(json.dumps({"progress": ["Timing", 3, 40, 0.35]}).encode())
        threading.Timer(0.5, lambda: lines.put(None)).start()
        progress = listener.progress("build")
        tensorrt_process.follow(lines, "tensorrt-fp16", progress, earlier_s=3600.0, heartbeat_s=0.05)
    line = shown.getvalue().splitlines()[0]
    for part in ("35 %", "ETA", "1 h", "phase=Timing 3/40", "elapsed=0 s", "target=tensorrt-fp16"):
        assert part in line
    assert "eta_s" not in line
    assert "/s" not in line, "a share of the work has no rate worth telling"


def test_durations_are_kept_for_builds_that_are_alike(tmp_path: Path) -> None:
    specification = _specification(tmp_path, "tensorrt")
    key = tensorrt_timings.duration_key(specification, "sdk-GPU", "fp16", 120)
    assert tensorrt_timings.read_duration(tmp_path, key) is None
    tensorrt_timings.save_duration(tmp_path, key, 61.234)
    tensorrt_timings.save_duration(tmp_path, "other", 5.0)
    assert tensorrt_timings.read_duration(tmp_path, key) == 61.2
    changed = replace(specification, optimization_level=5)
    assert tensorrt_timings.duration_key(changed, "sdk-GPU", "fp16", 120) != key
    (tmp_path / "durations.json").write_text("damaged", encoding="utf-8")
    assert tensorrt_timings.read_duration(tmp_path, key) is None
    tensorrt_timings.save_duration(tmp_path, key, 2.0)
    assert tensorrt_timings.read_duration(tmp_path, key) == 2.0


def test_timings_belong_to_version_gpu_capability_and_driver() -> None:
    device = {"name": "Some GPU 5", "compute_capability": "8.9", "driver": "CUDA 13.0"}
    abilities = {"version": "11.4.0", "device": device}
    name = tensorrt_timings.identity("tensorrt", abilities)
    for part in ("tensorrt-11.4.0", "Some_GPU_5", "sm8.9", "CUDA_13.0", "driver"):
        assert part in name
    assert "/" not in name
    for other in (
        {**abilities, "version": "11.3.0"},
        *({**abilities, "device": {**device, key: "another"}} for key in device),
    ):
        assert tensorrt_timings.identity("tensorrt", other) != name
    assert tensorrt_timings.identity("tensorrt", {"version": "11.4.0", "device": {"error": "none"}}) == ""


def test_a_folder_of_timings_that_cannot_be_made_is_the_users_to_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("KDPIPE_TIMING_CACHE", str(tmp_path / "file" / "timings"))
    with raises(UsageError, what="folder of timings cannot be created") as caught:
        tensorrt_timings.folder(tmp_path / "work")
    assert caught.value.where == "KDPIPE_TIMING_CACHE"
    assert str(tmp_path / "file") in caught.value.why
    assert "unset it" in caught.value.hint


def test_kept_timings_of_another_machine_are_told(tmp_path: Path) -> None:
    progress = RecordedProgress()
    timings = tmp_path / "tensorrt-11.4.0-GPU.cache"
    tensorrt_timings.note_other_timings(timings, "tensorrt", progress)
    assert progress.notes == []
    (tmp_path / "tensorrt-10.12-GPU.cache").write_bytes(b"theirs")
    tensorrt_timings.note_other_timings(timings, "tensorrt", progress)
    assert "another GPU, driver or version" in progress.notes[0]
    timings.write_bytes(b"mine")
    tensorrt_timings.note_other_timings(timings, "tensorrt", progress)
    assert len(progress.notes) == 1


# Failures


def test_long_words_of_the_sdk_are_shortened() -> None:
    text = tensorrt_faults.shortened(["the cause", "the cause", "x" * 1000, "b", "c", "d", "e"])
    lines = text.splitlines()
    assert lines[0] == "the cause"
    assert len(lines[1]) == tensorrt_faults.MOST_LETTERS
    assert lines[-1] == "and 2 more"


def test_a_dead_builder_tells_its_signal() -> None:
    killed = tensorrt_faults.died("tensorrt", -signal.SIGKILL, [])
    assert "SIGKILL" in killed.why
    assert "memory" in killed.why
    assert "SIGSEGV" in tensorrt_faults.died("tensorrt", -signal.SIGSEGV, ["at 0x0"]).why
    assert "status 3: last words" in tensorrt_faults.died("tensorrt", 3, ["last words"]).why


def test_running_out_of_memory_asks_for_less() -> None:
    logged = ["Requested amount of GPU memory (8 GiB) could not be allocated", "CUDA out of memory"]
    error = tensorrt_faults.built_nothing(logged)
    assert "out of memory" in error.why
    assert "--set build.workspace_mb=256" in error.hint
    assert "4096" in tensorrt_faults.built_nothing(["no implementation for node"]).hint
