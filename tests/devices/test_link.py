"""Links that break, damage, refuse; and what a profile may say of a device."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, kdpipe, write_profile
from tests.devices.lab import TINY, DeviceLab


def test_a_link_that_breaks_is_taken_up_where_it_ended(lab: DeviceLab) -> None:
    home, flag = lab.home(), lab.folder / "break"
    options = lab.server.breaking(flag, limit_bytes=120_000)
    profile = lab.profile({"board": lab.device(home, options=options)})
    flag.touch()
    broken = lab.run("ship", "board", profile)
    assert broken.returncode == 4
    assert "run the same command again" in broken.stderr
    assert not (home / "current").exists()
    (part,) = (home / "received").glob("*.part")
    assert part.stat().st_size > 0
    flag.unlink()
    ran = lab.run("ship", "board", profile)
    assert ran.returncode == 0, ran.stderr
    assert "continues at byte" in ran.stderr
    assert not list((home / "received").iterdir())


def test_a_file_that_arrives_damaged_is_sent_again(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home)})
    planned = document(lab.run("plan", profile, "--json"))["stages"]
    bundle = Path(next(stage["path"] for stage in planned if stage["name"] == "package")) / "bundle"
    model = next((bundle / "models" / "onnxruntime-fp32").iterdir())
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    (home / "received").mkdir(parents=True)
    (home / "received" / f"{sha256}.part").write_bytes(b"\0" * 1000)
    ran = lab.run("ship", "board", profile)
    assert ran.returncode == 0, ran.stderr
    assert "arrived damaged: sending it again" in ran.stderr
    shipped = home / "current" / "models" / "onnxruntime-fp32" / model.name
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == sha256


def test_a_refused_key_an_unknown_host_and_a_missing_python_have_a_remedy(lab: DeviceLab) -> None:
    other = lab.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    home = str(lab.home())
    devices = {
        "key": lab.server.device(folder=home) | {"identity": str(other)},
        "host": lab.server.device(folder=home, options={"UserKnownHostsFile": "/dev/null"}),
        "python": lab.server.device(folder=home, python="/no/such/python"),
    }
    profile = lab.profile(devices)
    expected = {"key": "ssh-copy-id", "host": "connect once by hand", "python": "devices.python.python"}
    for name, remedy in expected.items():
        ran = kdpipe("device", "check", name, profile)
        assert ran.returncode == 4, ran.stderr
        assert remedy in ran.stderr
    unknown = kdpipe("device", "check", "nobody", profile)
    assert unknown.returncode == 2
    assert "key, host, python" in unknown.stderr


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"url": "ssh://-oProxyCommand=x"}, "url"),
        ({"url": "ssh://board:70000"}, "port"),
        ({"url": "local", "folder": "../elsewhere"}, "folder"),
        ({"url": "local", "options": {"BatchMode": "no"}}, "BatchMode"),
        ({"url": "local", "targets": ["openvino-fp32"]}, "openvino-fp32"),
        ({"url": "local", "foldr": "x"}, "did you mean 'folder'"),
    ],
)
def test_a_wrong_device_is_a_fault_of_the_profile(
    tmp_path: Path, device: dict[str, Any], message: str
) -> None:
    profile = write_profile(tmp_path / "wrong.yaml", {**TINY, "devices": {"board": device}})
    ran = kdpipe("show", profile)
    assert ran.returncode == 2
    assert message in ran.stderr
