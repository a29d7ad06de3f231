"""Take a profile from training to a device, command by command; the device is an account on this machine.

    sudo .venv/bin/python benchmarks/device_rehearsal.py --store DIR [--profile FILE] [--result FILE] [--keep]

The program needs root, OpenSSH's server and a Python 3.10 or later that every account can run (--python). It
creates the account `kdpipe-edge` with its own key. It starts an sshd on a free port of the loopback interface
that accepts only this account. The account gets a virtual environment with numpy, onnxruntime, openvino and
Pillow, without kdpipe. Then the program runs the commands of a user, and prints each command, its exit code,
its seconds and its output. At the end it removes everything; --keep leaves the account and its files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "kdpipe-edge"
PACKAGES = ("numpy", "onnxruntime", "openvino", "pillow")
KDPIPE = [sys.executable, "-m", "pipeline"]
SECOND_VERSION = "package.targets=[onnxruntime-fp32,onnxruntime-int8]"
SHOWN_LINES = 40


@dataclass(frozen=True)
class Step:
    """A command with its exit code, duration and output."""

    name: str
    typed: str
    code: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Edge:
    """The account: its home, its Python, and the settings of the ssh connection."""

    home: Path
    python: Path
    port: int
    config: Path
    identity: Path

    def entry(self) -> dict[str, object]:
        """Return the entry under `devices` in a profile."""
        address = f"ssh://{ACCOUNT}@127.0.0.1:{self.port}"
        access = {"identity": str(self.identity), "config": str(self.config)}
        return {"url": address, "python": str(self.python), **access}

    def ssh(self, command: str) -> list[str]:
        access = ["-F", str(self.config), "-i", str(self.identity), "-p", str(self.port)]
        return ["ssh", *access, f"{ACCOUNT}@127.0.0.1", command]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, default=ROOT / "profiles" / "resnet_to_mobilenet.yaml")
    parser.add_argument(
        "--store", type=Path, required=True, help="kdpipe's store; it may already contain the run"
    )
    parser.add_argument("--python", default="/usr/bin/python3", help="the Python that the account uses")
    parser.add_argument("--result", type=Path, help="write the report to this Markdown file")
    parser.add_argument("--keep", action="store_true", help="leave the account and its files")
    options = parser.parse_args()
    _check_requirements(options.python)
    with tempfile.TemporaryDirectory(prefix="kdpipe-rehearsal-") as folder, cleanup(options.keep):
        edge = prepare(Path(folder), options.python)
        with serving(Path(folder), edge):
            steps = rehearse(Path(folder), edge, options.profile.resolve(), options.store.resolve())
    table = as_table(steps)
    print(table)
    if options.result:
        options.result.write_text(as_page(steps, table), encoding="utf-8")
    sys.exit(max(step.code for step in steps))


def rehearse(folder: Path, edge: Edge, profile: Path, store: Path) -> list[Step]:
    edge_profile = folder / "edge.yaml"
    edge_profile.write_text(
        json.dumps({"extends": str(profile), "devices": {"edge": edge.entry()}}), encoding="utf-8"
    )
    write_image(edge.home / "image.png")
    predict = f"{edge.python} kdpipe/current/predict.py image.png --top 3"
    at = ["--store", str(store)]
    commands = [
        ("run", [*KDPIPE, "run", str(profile), *at]),
        ("device check", [*KDPIPE, "device", "check", "edge", str(edge_profile)]),
        ("device measure", [*KDPIPE, "device", "measure", "edge", str(edge_profile), *at]),
        ("device measure, again", [*KDPIPE, "device", "measure", "edge", str(edge_profile), *at]),
        ("ship", [*KDPIPE, "ship", "edge", str(edge_profile), *at]),
        ("predict there", edge.ssh(predict)),
        ("ship a second version", [*KDPIPE, "ship", "edge", str(edge_profile), *at, "--set", SECOND_VERSION]),
        ("ship --list", [*KDPIPE, "ship", "edge", str(edge_profile), *at, "--list"]),
        ("ship --rollback", [*KDPIPE, "ship", "edge", str(edge_profile), *at, "--rollback"]),
        ("predict there, again", edge.ssh(predict)),
        ("self-test there", edge.ssh(f"{edge.python} kdpipe/current/predict.py --selftest")),
    ]
    return [
        take(
            name,
            command,
            {
                str(edge_profile): "edge.yaml",
                f"--store {store}": "--store STORE",
                f"{store}/": "STORE/",
                f"{folder}/": "KEYS/",
            },
        )
        for name, command in commands
    ]


def take(name: str, command: list[str], short: dict[str, str]) -> Step:
    """Run a command and print it with its output.

    Args:
        name: the step's name.
        command: the arguments.
        short: replacements for long paths in the printed text.
    """
    typed = shlex.join(["kdpipe", *command[len(KDPIPE) :]] if command[: len(KDPIPE)] == KDPIPE else command)
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )
    seconds = time.perf_counter() - begun
    output = done.stdout.strip()
    for long, word in {**short, f"{ROOT}/": ""}.items():
        typed, output = typed.replace(long, word), output.replace(long, word)
    lines = output.splitlines()
    if len(lines) > SHOWN_LINES:
        output = "\n".join([f"... {len(lines) - SHOWN_LINES} lines before", *lines[-SHOWN_LINES:]])
    print(f"$ {typed}\n{output}\n=> exit code {done.returncode}, {seconds:.1f} s\n", flush=True)
    return Step(name, typed, done.returncode, seconds, output)


def prepare(folder: Path, python: str) -> Edge:
    """Create the account with its Python and key."""
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", ACCOUNT], check=True)
    # sshd rejects a locked account even with a key. With `*`, the account is not locked and has no password.
    subprocess.run(["usermod", "--password", "*", ACCOUNT], check=True)
    home = Path(pwd.getpwnam(ACCOUNT).pw_dir)
    as_account = ["runuser", "-u", ACCOUNT, "--"]
    subprocess.run([*as_account, python, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    there = home / "venv" / "bin" / "python"
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    minor = subprocess.run([*as_account, there, "-c", code], capture_output=True, text=True, check=True)
    site = home / "venv" / "lib" / f"python{minor.stdout.strip()}" / "site-packages"
    pins = [f"{name}=={version(name)}" for name in PACKAGES]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(site),
    ]
    print(f"installing {', '.join(pins)} for {ACCOUNT}", flush=True)
    only = ["--only-binary=:all:", "--python-version", minor.stdout.strip()]
    subprocess.run([*pip, *only, *pins], check=True)
    subprocess.run(["chmod", "-R", "a+rX", site], check=True)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder / 'known_hosts'}\nGlobalKnownHostsFile /dev/null\n"
        "StrictHostKeyChecking yes\nIdentitiesOnly yes\nLogLevel ERROR\n"
    )
    return Edge(home, there, port, folder / "ssh_config", folder / "user")


@contextlib.contextmanager
def serving(folder: Path, edge: Edge) -> Iterator[None]:
    """Run an sshd that accepts only the account."""
    (folder / "sshd_config").write_text(
        f"Port {edge.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nAllowUsers {ACCOUNT}\n"
    )
    folder.chmod(0o711)  # sshd reads the key as the account
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(edge.port, server, folder / "sshd.log")
        yield
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def cleanup(keep: bool) -> Iterator[None]:
    """Remove the account at the end."""
    try:
        yield
    finally:
        if not keep and _exists():
            removed = subprocess.run(
                ["userdel", "--remove", "--force", ACCOUNT], capture_output=True, text=True, check=False
            )
            if removed.returncode:
                print(f"cannot remove the account {ACCOUNT}: {removed.stderr.strip()}", file=sys.stderr)


def write_image(path: Path) -> None:
    """Write a scan of a handwritten digit as an image file, like a camera."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scan = load_digits().images[3]
    Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8)).save(path)
    path.chmod(0o644)


def as_table(steps: list[Step]) -> str:
    width = max(len(step.name) for step in steps)
    lines = [f"{'command':{width}}  exit code  seconds"]
    lines += [f"{step.name:{width}}  {step.code:9}  {step.seconds:7.1f}" for step in steps]
    return "\n".join(lines)


def as_page(steps: list[Step], table: str) -> str:
    facts = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end, n = 1"
    pins = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [
        "# From a profile to a device",
        f"`python benchmarks/device_rehearsal.py`, {time.strftime('%Y-%m-%d')}, {facts}. The device is "
        f"a second account on the same machine, with its own sshd, and with {pins}. kdpipe is not installed "
        "there.",
        f"```\n{table}\n```",
    ]
    parts += [f"## {step.name}\n\n```\n$ {step.typed}\n{step.output}\n```" for step in steps]
    return "\n\n".join(parts) + "\n"


def _check_requirements(python: str) -> None:
    if os.getuid() != 0:
        sys.exit("run it as root: the program creates an account")
    if _exists():
        sys.exit(f"the account {ACCOUNT} already exists: remove it with userdel --remove {ACCOUNT}")
    for program in ("useradd", "runuser", "ssh", "ssh-keygen", python):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed")
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").is_file():
        sys.exit("sshd is not installed: apt-get install openssh-server")


def _exists() -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(ACCOUNT))
    return False


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            sys.exit(f"sshd does not run: {log.read_text(encoding='utf-8').strip()[-300:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    sys.exit("sshd does not listen")


if __name__ == "__main__":
    main()
