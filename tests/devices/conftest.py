"""One finished line, sshd and Python for all tests of devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.lab import DeviceLab
from tests.ssh_server import device_python, ssh_server


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceLab]:
    folder = tmp_path_factory.mktemp("devices")
    (folder / "ssh").mkdir()
    with ssh_server(folder / "ssh") as server:
        line = DeviceLab(folder, server, device_python(folder / "python", "numpy", "onnxruntime"))
        packed = line.run("package", line.profile({}))
        assert packed.returncode == 0, packed.stderr
        yield line
