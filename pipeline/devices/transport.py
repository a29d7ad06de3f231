"""How a command gets to a device: through OpenSSH's client, through adb, or as a process on this machine.

A transport turns the words of a command into a process to start on this machine. The streams and the exit
code of the process are those of the command.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.errors import UsageError
from pipeline.paths import expand

SSH, ADB = "ssh://", "adb://"
SHARED_CONNECTION_S = 60
"""How long ssh keeps the shared connection after the last call, in seconds."""

EXIT_LINK_FAILED = 255
"""The exit code of ssh and adb if the connection failed or broke."""


class Transport(Protocol):
    """A transport to one device.

    Attributes:
        python_hint: How to fix a missing Python on the device; `%s` is the device's name.
    """

    python_hint: str

    def command(self, words: list[str]) -> list[str]:
        """Return the process to start on this machine.

        Args:
            words: The command to run on the device.

        Raises:
            UsageError: A path in the device's settings has a variable that is not set.
        """

    def link_fault(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        """Return what failed and how to fix it if the connection failed; None if the command itself did.

        Args:
            exit_code: The process's exit code.
            stderr: Its standard error.
        """

    def close(self) -> None:
        """End the connection that the calls share."""


def transport(name: str, settings: Mapping[str, Any]) -> Transport:
    """Return the transport for a device; it does not connect yet.

    Args:
        name: The device's name in the profile.
        settings: Its entry under `devices` in the profile.
    """
    url = str(settings["url"])
    if url.startswith(ADB):
        return Adb(url.removeprefix(ADB).rstrip("/"))
    return Ssh(name, settings) if url.startswith(SSH) else Local()


class Local:
    """The transport to this machine; commands start in the user's home folder."""

    python_hint = "set a Python with devices.%s.python"

    def command(self, words: list[str]) -> list[str]:
        """Return the words unchanged."""
        return words

    def link_fault(
        self,
        exit_code: int,  # noqa: ARG002 - the interface passes it
        stderr: str,  # noqa: ARG002 - the interface passes it
    ) -> tuple[str, str] | None:
        """Return None: there is no connection that could fail."""
        return None

    def close(self) -> None:
        """Do nothing: the calls share no connection."""


class Ssh:
    """The transport through OpenSSH's client.

    All calls share one connection (ControlMaster). ssh never prompts. It checks host keys as the user's own
    configuration demands.
    """

    python_hint = "install Python there, or set its path with devices.%s.python"

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name, self._settings = name, settings
        self._address = str(settings["url"]).removeprefix(SSH).rstrip("/")
        self._sockets: str | None = None

    def command(self, words: list[str]) -> list[str]:
        """Return the call of ssh with the words quoted for the device's shell."""
        return [*self._ssh(), self._destination, shlex.join(words)]

    def link_fault(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        """Return the fault if ssh itself failed: a refused key, an unknown host key or a broken link."""
        if exit_code != EXIT_LINK_FAILED:
            return None
        if "Permission denied" in stderr or "Too many authentication failures" in stderr:
            return (
                "The device refuses the key",
                f"kdpipe never asks for a password: ssh-copy-id {self._destination}, or set a private key "
                f"with devices.{self._name}.identity",
            )
        if "Host key verification failed" in stderr or "REMOTE HOST IDENTIFICATION" in stderr:
            by_hand = shlex.join(["ssh", self._destination])
            return (
                "The device's host key is unknown, or has changed",
                f"connect once by hand and compare the fingerprint: {by_hand}",
            )
        return (
            "The device cannot be reached, or the link broke",
            "once it answers, run the same command again: it continues where it stopped",
        )

    def close(self) -> None:
        """End the shared connection and remove its socket."""
        if self._sockets is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self._ssh(), "-O", "exit", self._destination],
                capture_output=True,
                check=False,
                timeout=10,
                stdin=subprocess.DEVNULL,
            )
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets = None

    @property
    def _destination(self) -> str:
        return re.sub(r":[0-9]+$", "", self._address).translate({ord("["): None, ord("]"): None})

    def _ssh(self) -> list[str]:
        settings = self._settings
        files = {key: _file(self._name, settings, key) for key in ("config", "identity") if settings[key]}
        if self._sockets is None:
            # A socket's path must be short. The folder is new, so the user's own connections are unaffected.
            self._sockets = tempfile.mkdtemp(prefix="kdpipe-ssh-")
        options = {
            **settings["options"],
            "BatchMode": "yes",
            "ControlMaster": "auto",
            "ControlPath": f"{self._sockets}/%C",
            "ControlPersist": str(SHARED_CONNECTION_S),
        }
        chosen = {name.lower() for name in options}
        timeouts = {
            "ConnectTimeout": f"{settings['connect_timeout_s']:.0f}",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
        }
        options |= {name: value for name, value in timeouts.items() if name.lower() not in chosen}
        command = ["ssh", "-T"]
        if "config" in files:
            command += ["-F", files["config"]]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        if "identity" in files:
            command += ["-i", files["identity"], "-o", "IdentitiesOnly=yes"]
        port = re.search(r":([0-9]+)$", self._address.rpartition("]")[2])
        return [*command, "-p", port[1]] if port else command


def _file(name: str, settings: Mapping[str, Any], key: str) -> str:
    """Expand the path of a file on this machine.

    Raises:
        UsageError: The path has a variable that is not set.
    """
    try:
        return str(expand(settings[key]))
    except ValueError as error:
        raise UsageError(
            f"The device's {key} is not a valid path",
            where=f"devices.{name}.{key}",
            why=f"{settings[key]}: {error}",
            hint=f"correct devices.{name}.{key}, or set it to null",
        ) from error


class Adb:
    """The transport through adb, for Android 7 or later or a board with adbd.

    Commands start in /data/local/tmp if it exists, because Android's shell user can write nowhere else.

    Args:
        serial: The device's serial number in the list of `adb devices`.
    """

    python_hint = (
        "Android has no Python of its own. Push a build that the shell user can run to /data/local/tmp "
        "(python.org has builds for Android), or run `adb root` and use Termux's, "
        "/data/data/com.termux/files/usr/bin/python3; then set its path with devices.%s.python"
    )
    HOME = 'cd /data/local/tmp 2>/dev/null || cd; export HOME="$PWD"; exec '

    def __init__(self, serial: str) -> None:
        self._serial = serial

    def command(self, words: list[str]) -> list[str]:
        """Return the call of adb with the words quoted for the device's shell."""
        # The device's shell splits the one text. -T starts no terminal, so bytes arrive unchanged.
        return ["adb", "-s", self._serial, "shell", "-T", self.HOME + shlex.join(words)]

    def link_fault(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        """Return the fault if adb itself failed.

        Both adb and commands may exit with 1; adb's own messages have a prefix. If the cable is pulled during
        a call, a newer adb exits with 255 and an older one with 0, both without a message.
        """
        lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "adb: "))]
        if exit_code == 0 or not (lines or exit_code == EXIT_LINK_FAILED):
            return None
        if lines and "unauthorized" in lines[-1]:
            return "The device does not trust this machine yet", "unlock its screen and allow USB debugging"
        return (
            "The device cannot be reached, or the link broke",
            "`adb devices` lists the connected devices; then run the same command again: it continues "
            "where it stopped",
        )

    def close(self) -> None:
        """Do nothing: the calls share no connection."""
