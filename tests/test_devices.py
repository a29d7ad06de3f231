"""Devices through the command line: a real sshd, a Python with numpy and ONNX Runtime alone, real bundles."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import document, environment, kdpipe, write_profile
from tests.ssh_server import Server, device_python, ssh_server

PACKED = ["onnxruntime-fp32", "onnxruntime-int8"]

TINY: dict[str, Any] = {
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "data": {"name": "digits", "image_size": 16},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_efficientnet"},
    "train": {"epochs": 1, "batch_size": 64, "learning_rate": 0.005},
    "distill": {"epochs": 2, "batch_size": 64, "learning_rate": 0.005, "methods": []},
    "quantize": {"images": 16},
    "measure": {
        "warmup_s": 0.01,
        "duration_s": 0.05,
        "max_duration_s": 0.1,
        "min_samples": 20,
        "compare_s": 0,
    },
    "targets": ["onnxruntime-fp32", "onnxruntime-int8", "tensorrt_rtx-fp16"],
    "package": {"targets": PACKED},
}


@dataclass
class Place:
    """A store with a finished line, an sshd, and a Python for the devices."""

    folder: Path
    server: Server
    python: str
    counter: list[int] = field(default_factory=lambda: [0])

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def home(self) -> Path:
        """A folder for a device, not there yet."""
        self.counter[0] += 1
        return self.folder / f"device {self.counter[0]}"  # a blank: what is not quoted breaks

    def profile(self, devices: dict[str, Any], **more: Any) -> Path:
        return write_profile(self.folder / "tiny.yaml", {**TINY, **more, "devices": devices})

    def device(self, home: Path, **more: Any) -> dict[str, Any]:
        return self.server.device(python=self.python, folder=str(home), **more)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return kdpipe(*words, "--store", self.store)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("devices")
    (folder / "ssh").mkdir()
    with ssh_server(folder / "ssh") as server:
        found = Place(folder, server, device_python(folder / "python", "numpy", "onnxruntime"))
        made = found.run("package", found.profile({}))
        assert made.returncode == 0, made.stderr
        yield found


def releases(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "releases").iterdir())


def current(home: Path) -> str:
    return (home / "current").readlink().name


def test_check_tells_what_is_there_and_leaves_nothing(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home)})
    told = kdpipe("device", "check", "board", profile, "--json")
    assert told.returncode == 0, told.stderr
    (found,) = document(told)["devices"]
    assert found["numpy"]["version"] == np.__version__
    assert "version" in found["runtimes"]["onnxruntime"]
    assert "error" in found["runtimes"]["openvino"], "that package is not in the device's Python"
    assert [target["target"] for target in found["targets"] if target["can"]] == PACKED
    assert not home.exists()
    words = kdpipe("device", "check", "board", profile).stdout
    assert "onnxruntime-int8: can be measured" in words


def test_a_killed_measurement_goes_on_by_target_and_is_cached(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home, targets=PACKED)})
    command = [sys.executable, "-m", "pipeline", "device", "measure", "board", str(profile)]
    with subprocess.Popen(
        [*command, "--store", str(place.store)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "onnxruntime-fp32 done" in line:
                break
        child.kill()
    ran = place.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    assert "onnxruntime-fp32 was measured already" in ran.stderr
    assert "onnxruntime-int8 done" in ran.stderr
    (device,) = document(ran)["devices"]
    assert device["status"] == "ran"
    assert [row["target"] for row in device["rows"]] == PACKED
    for row in device["rows"]:
        (entry,) = row["latency"]
        raw = np.load(Path(device["path"]) / "samples" / f"{row['target']}-b1-t1.npy")
        assert raw.dtype == np.int64
        assert entry["n"] == len(raw) >= 20
        middle = np.sort(raw)[int(np.ceil(len(raw) / 2)) - 1]
        assert entry["p50_ms"] == pytest.approx(middle * 1e-6)
        assert row["golden"]["passed"]
        assert row["golden"]["of"] == row["target"]
        assert row["facts"]["version"]
    assert not list((home / "measured").iterdir())
    assert "/" not in json.dumps(device["facts"]["python"])
    again = place.run("device", "measure", "board", profile, "--json")
    assert document(again)["devices"][0]["status"] == "hit"
    assert document(again)["devices"][0]["rows"] == device["rows"]


def test_two_devices_at_once_and_one_that_does_not_answer(place: Place) -> None:
    first, second = place.home(), place.home()
    devices = {
        "one": place.device(first, targets=["onnxruntime-fp32"]),
        "two": place.device(second, targets=["onnxruntime-int8"]),
        "gone": {"url": "ssh://127.0.0.1:1", "config": str(place.server.config)},
    }
    profile = place.profile(devices)
    ran = place.run("device", "measure", "one", "two", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    found = {device["name"]: device for device in document(ran)["devices"]}
    assert [row["target"] for row in found["one"]["rows"]] == ["onnxruntime-fp32"]
    assert [row["target"] for row in found["two"]["rows"]] == ["onnxruntime-int8"]
    gone = place.run("device", "measure", "gone", profile)
    assert gone.returncode == 4
    assert "Connection refused" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_ship_list_and_roll_back(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home)})
    assert "nothing was shipped" in place.run("ship", "board", profile, "--list").stdout
    nothing = place.run("ship", "board", profile, "--rollback")
    assert nothing.returncode == 2
    first = document(place.run("ship", "board", profile, "--json"))["current"]
    assert (home / "current" / "predict.py").is_file()
    assert current(home) == first
    second_run = place.run("ship", "board", profile, "--json", "--set", "package.targets=[onnxruntime-fp32]")
    second = document(second_run)["current"]
    assert second != first
    assert document(second_run)["previous"] == first
    files = [path for path in (home / "releases" / second / "models").rglob("*") if path.is_file()]
    assert document(second_run)["sent_bytes"] < sum(path.stat().st_size for path in files), "models lay there"
    rolled = place.run("ship", "board", profile, "--rollback", "--json")
    assert document(rolled)["current"] == first == current(home)
    listed = document(place.run("ship", "board", profile, "--list", "--json"))
    assert [(one["digest"], one["current"]) for one in listed["releases"]] == [(second, False), (first, True)]
    third = document(place.run("ship", "board", profile, "--json", "--keep", "1"))
    assert third["removed"] == [second]
    assert releases(home) == [first]


def test_a_release_that_fails_its_self_test_does_not_become_current(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home)})
    first = document(place.run("ship", "board", profile, "--json"))["current"]
    changed = ["--set", "package.targets=[onnxruntime-int8]"]
    second = document(place.run("ship", "board", profile, "--json", *changed))["current"]
    golden = home / "releases" / first / "golden" / "onnxruntime-fp32.npy"
    np.save(golden, np.load(golden) + 100.0)
    rolled = place.run("ship", "board", profile, "--rollback")
    assert rolled.returncode == 1
    assert "does not give its golden outputs" in rolled.stderr
    assert current(home) == second
    again = place.run("ship", "board", profile, "--json")
    assert again.returncode == 0, again.stderr
    assert current(home) == first, "the damaged file was sent anew"
    bare = place.device(home) | {"python": device_python(place.folder / "bare", "numpy")}
    refused = place.run("ship", "board", place.profile({"board": bare}), *changed)
    assert refused.returncode == 4
    assert "onnxruntime is not installed" in refused.stderr
    assert current(home) == first


def test_a_link_that_breaks_is_taken_up_where_it_ended(place: Place) -> None:
    home, flag = place.home(), place.folder / "break"
    options = place.server.breaking(flag, limit_bytes=120_000)
    profile = place.profile({"board": place.device(home, options=options)})
    flag.touch()
    broken = place.run("ship", "board", profile)
    assert broken.returncode == 4
    assert "run the same command again" in broken.stderr
    assert not (home / "current").exists()
    (part,) = (home / "received").glob("*.part")
    assert part.stat().st_size > 0
    flag.unlink()
    ran = place.run("ship", "board", profile)
    assert ran.returncode == 0, ran.stderr
    assert "goes on at" in ran.stderr
    assert not list((home / "received").iterdir())


def test_a_file_that_arrives_damaged_is_sent_again(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home)})
    planned = document(place.run("plan", profile, "--json"))["stages"]
    bundle = Path(next(stage["path"] for stage in planned if stage["name"] == "package")) / "bundle"
    model = next((bundle / "models" / "onnxruntime-fp32").iterdir())
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    (home / "received").mkdir(parents=True)
    (home / "received" / f"{sha256}.part").write_bytes(b"\0" * 1000)
    ran = place.run("ship", "board", profile)
    assert ran.returncode == 0, ran.stderr
    assert "arrived damaged: once more" in ran.stderr
    shipped = home / "current" / "models" / "onnxruntime-fp32" / model.name
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == sha256


def test_a_refused_key_an_unknown_host_and_a_missing_python_are_told_with_their_remedy(place: Place) -> None:
    other = place.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    home = str(place.home())
    devices = {
        "key": place.server.device(folder=home) | {"identity": str(other)},
        "host": place.server.device(folder=home, options={"UserKnownHostsFile": "/dev/null"}),
        "python": place.server.device(folder=home, python="/no/such/python"),
    }
    profile = place.profile(devices)
    expected = {"key": "ssh-copy-id", "host": "connect once by hand", "python": "devices.python.python"}
    for name, remedy in expected.items():
        told = kdpipe("device", "check", name, profile)
        assert told.returncode == 4, told.stderr
        assert remedy in told.stderr
    unknown = kdpipe("device", "check", "nobody", profile)
    assert unknown.returncode == 2
    assert "key, host, python" in unknown.stderr


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ({"url": "ssh://-oProxyCommand=x"}, "url"),
        ({"url": "ssh://board:70000"}, "port"),
        ({"url": "local", "folder": "../elsewhere"}, "folder"),
        ({"url": "local", "options": {"BatchMode": "no"}}, "BatchMode"),
        ({"url": "local", "targets": ["openvino-fp32"]}, "openvino-fp32"),
        ({"url": "local", "foldr": "x"}, "did you mean 'folder'"),
    ],
)
def test_a_wrong_device_is_a_fault_of_the_profile(tmp_path: Path, device: dict[str, Any], said: str) -> None:
    profile = write_profile(tmp_path / "wrong.yaml", {**TINY, "devices": {"board": device}})
    told = kdpipe("show", profile)
    assert told.returncode == 2
    assert said in told.stderr


def test_engines_are_built_on_the_device(place: Place) -> None:
    """TensorRT for RTX builds without a GPU: its engine comes back, and it is said why it was not timed."""
    pytest.importorskip("tensorrt_rtx")
    home = place.home()
    board = {"url": "local", "python": sys.executable, "folder": str(home), "targets": ["tensorrt_rtx-fp16"]}
    profile = place.profile({"board": board})
    ran = place.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    (device,) = document(ran)["devices"]
    (row,) = device["rows"]
    engine = Path(device["path"]) / "engines" / "tensorrt_rtx-fp16" / "model.engine"
    assert row["built"]
    assert hashlib.sha256(engine.read_bytes()).hexdigest() == row["sha256"] == row["built_there"]["sha256"]
    assert row["latency"] or "driver" in row["why_not"]
