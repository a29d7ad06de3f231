"""`kdpipe ship` over a real sshd."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.command import document
from tests.devices.place import Place
from tests.ssh_server import device_python


def releases(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "releases").iterdir())


def current(home: Path) -> str:
    return (home / "current").readlink().name


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
