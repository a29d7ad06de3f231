"""Links that break, damage, refuse; and what a profile may say of a device."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, kdpipe, write_profile
from tests.devices.place import TINY, Place


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
