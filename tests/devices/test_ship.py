"""`kdpipe ship` over a real sshd."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from stages.devices.there import releases as there
from tests.command import document
from tests.devices.lab import DeviceLab
from tests.ssh_server import device_python


def releases(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "releases").iterdir())


def current(home: Path) -> str:
    return (home / "current").readlink().name


def test_ship_list_and_roll_back(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home)})
    assert "nothing was shipped" in lab.run("ship", "board", profile, "--list").stdout
    nothing = lab.run("ship", "board", profile, "--rollback")
    assert nothing.returncode == 2
    first = document(lab.run("ship", "board", profile, "--json"))["current"]
    assert (home / "current" / "predict.py").is_file()
    assert current(home) == first
    second_run = lab.run("ship", "board", profile, "--json", "--set", "package.targets=[onnxruntime-fp32]")
    second = document(second_run)["current"]
    assert second != first
    assert document(second_run)["previous"] == first
    files = [path for path in (home / "releases" / second / "models").rglob("*") if path.is_file()]
    assert document(second_run)["sent_bytes"] < sum(path.stat().st_size for path in files), "models lay there"
    rolled = lab.run("ship", "board", profile, "--rollback", "--json")
    assert document(rolled)["current"] == first == current(home)
    listed = document(lab.run("ship", "board", profile, "--list", "--json"))
    assert [(release["digest"], release["current"]) for release in listed["releases"]] == [
        (second, False),
        (first, True),
    ]
    third = document(lab.run("ship", "board", profile, "--json", "--keep", "1"))
    assert third["removed"] == [second]
    assert releases(home) == [first]


def test_a_release_that_fails_its_self_test_does_not_become_current(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home)})
    first = document(lab.run("ship", "board", profile, "--json"))["current"]
    changed = ["--set", "package.targets=[onnxruntime-int8]"]
    second = document(lab.run("ship", "board", profile, "--json", *changed))["current"]
    golden = home / "releases" / first / "golden" / "onnxruntime-fp32.npy"
    np.save(golden, np.load(golden) + 100.0)
    rolled = lab.run("ship", "board", profile, "--rollback")
    assert rolled.returncode == 1
    assert "golden/onnxruntime-fp32.npy" in rolled.stderr
    assert current(home) == second
    again = lab.run("ship", "board", profile, "--json")
    assert again.returncode == 0, again.stderr
    assert current(home) == first, "the damaged file was sent anew"
    bare = lab.device(home) | {"python": device_python(lab.folder / "bare", "numpy")}
    refused = lab.run("ship", "board", lab.profile({"board": bare}), *changed)
    assert refused.returncode == 4
    assert "onnxruntime is not installed" in refused.stderr
    assert current(home) == first
    assert releases(home) == sorted([first, second]), "a release that was in use stays"
    unseen = ["--set", "package.targets=[onnxruntime-fp32]"]
    refused = lab.run("ship", "board", lab.profile({"board": bare}), *unseen)
    assert refused.returncode == 4
    assert current(home) == first
    assert releases(home) == sorted([first, second]), "one that never was goes again"


def test_rollback_goes_back_one_release_at_a_time(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home)})
    versions = (
        "package.targets=[onnxruntime-fp32]",
        "package.targets=[onnxruntime-int8]",
        "package.targets=[onnxruntime-fp32,onnxruntime-int8]",
    )
    digests = [
        document(lab.run("ship", "board", profile, "--json", "--set", release))["current"]
        for release in versions
    ]
    assert len(set(digests)) == 3
    for expected in (digests[1], digests[0]):
        rolled = lab.run("ship", "board", profile, "--rollback", "--json")
        assert rolled.returncode == 0, rolled.stderr
        assert current(home) == expected
    nothing = lab.run("ship", "board", profile, "--rollback")
    assert nothing.returncode == 2
    assert "no earlier release" in nothing.stderr
    assert current(home) == digests[0]


def test_rollback_goes_to_what_was_in_use_before(tmp_path: Path) -> None:
    for digest in "abc":
        (tmp_path / "releases" / digest).mkdir(parents=True)
        manifest = {"name": digest, "default_target": "onnxruntime-fp32", "files": {}}
        (tmp_path / "releases" / digest / "manifest.json").write_text(json.dumps(manifest))
    request = {"folder": str(tmp_path), "keep": 2}
    for digest, ship in (("a", True), ("b", True), ("a", False)):  # b was bad
        there.switch({**request, "digest": digest, "ship": ship})
    shipped = there.switch({**request, "digest": "c", "ship": True})
    assert shipped == {"current": "c", "previous": "a", "removed": ["b"]}
    assert there.releases(request)["before"] == "a"


@pytest.mark.long
def test_two_that_switch_take_turns(tmp_path: Path) -> None:
    (tmp_path / "releases" / "a").mkdir(parents=True)
    (tmp_path / "releases" / "a" / "manifest.json").write_text("{}")
    request = {"folder": str(tmp_path), "digest": "a", "ship": True, "keep": 3}
    second = threading.Thread(target=there.switch, args=(request,))
    with (tmp_path / ".lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        second.join(timeout=2)
        assert second.is_alive(), "it waits for the first"
        assert not (tmp_path / "current").exists()
    second.join()
    assert (tmp_path / "current").exists()


@pytest.mark.long
def test_there_is_a_release_in_use_at_every_moment(tmp_path: Path) -> None:
    for digest in ("a", "b"):
        (tmp_path / "releases" / digest).mkdir(parents=True)
        (tmp_path / "releases" / digest / "manifest.json").write_text("{}")
    request = {"folder": str(tmp_path), "ship": True, "keep": 3}
    there.switch({**request, "digest": "a"})
    manifest, missing, ended = tmp_path / "current" / "manifest.json", [0], threading.Event()

    def look() -> None:
        while not ended.is_set():
            missing[0] += not manifest.is_file()

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(300):
        there.switch({**request, "digest": "ab"[turn % 2]})
    ended.set()
    reader.join()
    assert missing[0] == 0


@pytest.mark.parametrize("runtime", ["openvino", "ncnn"])
def test_the_self_test_on_the_device_runs_every_runtime_that_is_there(lab: DeviceLab, runtime: str) -> None:
    pytest.importorskip(runtime)
    python = device_python(lab.folder / f"with {runtime}", "numpy", "onnxruntime", runtime)
    device = lab.device(lab.home()) | {"python": python}
    profile = lab.profile({"board": device, "plain": lab.device(lab.home())}, package={"targets": None})
    targets = f"targets=[onnxruntime-fp32,{runtime}-fp32]"
    shipped = lab.run("ship", "board", profile, "--json", "--set", targets)
    assert shipped.returncode == 0, shipped.stderr
    output = "\n".join(document(shipped)["self_test"])
    for target in ("onnxruntime-fp32", f"{runtime}-fp32"):
        assert f"{target}: passed" in output
    without = lab.run("ship", "plain", profile, "--json", "--set", targets)
    assert without.returncode == 0, without.stderr
    assert f"{runtime}-fp32: not tested, {runtime} is not installed" in "\n".join(
        document(without)["self_test"]
    )
