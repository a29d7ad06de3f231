"""A real sshd on the loopback interface, run as the current user with its own key, port and configuration."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

RELAY = """
import os, socket, sys, threading
port, flag, limit = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
far = socket.create_connection(("127.0.0.1", port))
def back():
    while data := far.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
sent = 0
while data := os.read(0, 16384):
    sent += len(data)
    if sent > limit and os.path.exists(flag):
        os._exit(1)
    far.sendall(data)
os._exit(0)
"""
"""For ssh's ProxyCommand: a link that breaks after so many bytes, as long as a file is there."""


@dataclass(frozen=True)
class Server:
    """A running sshd: `config` and `identity` are the client's."""

    port: int
    folder: Path
    config: Path
    identity: Path

    def device(self, **more: object) -> dict[str, object]:
        """An entry of `devices`."""
        access = {"config": str(self.config), "identity": str(self.identity)}
        return {"url": f"ssh://127.0.0.1:{self.port}", **access, **more}

    def breaking(self, flag: Path, limit_bytes: int) -> dict[str, str]:
        """Options for a link that breaks after `limit_bytes` while the file `flag` is there."""
        relay = self.folder / "relay.py"
        relay.write_text(RELAY, encoding="utf-8")
        return {"ProxyCommand": f"{sys.executable} {relay} {self.port} {flag} {limit_bytes}"}


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """Skips the test, with the reason, where there is no OpenSSH server."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    for program in (sshd, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nKbdInteractiveAuthentication no\n",
        encoding="utf-8",
    )
    host_key = (folder / "host.pub").read_text(encoding="utf-8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="utf-8")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder / 'known_hosts'}\nGlobalKnownHostsFile /dev/null\n"
        "StrictHostKeyChecking yes\n",
        encoding="utf-8",
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, drops its privileges
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait(port, server, folder / "sshd.log")
        yield Server(port, folder, folder / "ssh_config", folder / "user")
    finally:
        server.terminate()
        server.wait()
        log.close()


def device_python(folder: Path, *packages: str) -> str:
    """A Python of its own in which nothing but these packages can be imported."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in packages:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))).resolve())
    return str(folder / "bin" / "python")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not run here: {log.read_text(encoding='utf-8').strip()[-300:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")
