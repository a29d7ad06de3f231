"""One finished line, sshd and Python for all tests of devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.place import Place
from tests.ssh_server import device_python, ssh_server


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("devices")
    (folder / "ssh").mkdir()
    with ssh_server(folder / "ssh") as server:
        found = Place(folder, server, device_python(folder / "python", "numpy", "onnxruntime"))
        made = found.run("package", found.profile({}))
        assert made.returncode == 0, made.stderr
        yield found
