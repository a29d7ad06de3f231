"""How a command gets to a device: over OpenSSH's client, over adb, or as a process on this machine.

Each turns the words of a command into a process to start here, whose streams and exit code are the command's.
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
MASTER_LIVES_S = 60

LOST = 255
"""ssh's own exit code, and adb's: the connection could not be made, or broke."""


class Transport(Protocol):
    """`python_hint`: what to do where the device has no such Python; `%s` stands for the device's name."""

    python_hint: str

    def command(self, words: list[str]) -> list[str]:
        """The process to start here for these words there."""

    def broke(self, code: int, said: str) -> tuple[str, str] | None:
        """What failed and how to fix it, if the connection did and not the command; else None.

        code, said: the process's exit code and what it wrote to standard error.
        """

    def close(self) -> None:
        """Ends what the calls share."""


def transport(name: str, settings: Mapping[str, Any]) -> Transport:
    """For the device `name` of the profile; nothing is connected yet."""
    url = str(settings["url"])
    if url.startswith(ADB):
        return Adb(url.removeprefix(ADB).rstrip("/"))
    return Ssh(name, settings) if url.startswith(SSH) else Local()


class Local:
    """This machine; commands begin in the user's home."""

    python_hint = "name a Python with devices.%s.python"

    def command(self, words: list[str]) -> list[str]:
        return words

    def broke(self, code: int, said: str) -> tuple[str, str] | None:
        return None

    def close(self) -> None:
        pass


class Ssh:
    """All calls share one connection (ControlMaster). ssh never prompts; host keys are checked as the user's
    own configuration says."""

    python_hint = "install Python there, or name it with devices.%s.python"

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name, self._settings = name, settings
        self._address = str(settings["url"]).removeprefix(SSH).rstrip("/")
        self._sockets: str | None = None

    def command(self, words: list[str]) -> list[str]:
        return [*self._ssh(), self._destination, shlex.join(words)]

    def broke(self, code: int, said: str) -> tuple[str, str] | None:
        if code != LOST:
            return None
        if "Permission denied" in said or "Too many authentication failures" in said:
            return (
                "The device refuses the key",
                f"kdpipe never asks for a password: ssh-copy-id {self._destination}, or name a private key "
                f"with devices.{self._name}.identity",
            )
        if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION" in said:
            by_hand = shlex.join(["ssh", self._destination])
            return (
                "The device's host key is not known, or is another one",
                f"connect once by hand and compare the fingerprint: {by_hand}",
            )
        return (
            "The device cannot be reached, or the link broke",
            "once it answers, run the same command again: it goes on where it was",
        )

    def close(self) -> None:
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
            # Short, for a socket's path is; of its own, so that no master of the user's is touched.
            self._sockets = tempfile.mkdtemp(prefix="kdpipe-ssh-")
        options = {
            **settings["options"],
            "BatchMode": "yes",
            "ControlMaster": "auto",
            "ControlPath": f"{self._sockets}/%C",
            "ControlPersist": str(MASTER_LIVES_S),
        }
        asked = {name.lower() for name in options}
        waits = {
            "ConnectTimeout": f"{settings['connect_timeout_s']:.0f}",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
        }
        options |= {name: value for name, value in waits.items() if name.lower() not in asked}
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
    """Expand the path of a file on this machine. Raises UsageError if it has a variable that is not set."""
    try:
        return str(expand(settings[key]))
    except ValueError as error:
        raise UsageError(
            f"The device's {key} names no file",
            where=f"devices.{name}.{key}",
            why=f"{settings[key]}: {error}",
            hint=f"correct devices.{name}.{key}, or set it to null",
        ) from error


class Adb:
    """A device by its serial number, as `adb devices` lists it: Android 7 or later, or a board with adbd.

    The home is /data/local/tmp where there is one, for Android's shell user has no other place to write.
    """

    python_hint = (
        "Android has no Python of its own. Push one that runs for the shell user below /data/local/tmp "
        "(python.org has builds for Android), or run `adb root` and take Termux's, "
        "/data/data/com.termux/files/usr/bin/python3; then name it with devices.%s.python"
    )
    HOME = 'cd /data/local/tmp 2>/dev/null || cd; export HOME="$PWD"; exec '

    def __init__(self, serial: str) -> None:
        self._serial = serial

    def command(self, words: list[str]) -> list[str]:
        # One text, which the device's shell takes apart; -T: no terminal, so that bytes stay as they are.
        return ["adb", "-s", self._serial, "shell", "-T", self.HOME + shlex.join(words)]

    def broke(self, code: int, said: str) -> tuple[str, str] | None:
        """adb has exit code 1 for its own faults, as commands may: its words tell them apart. A cable that is
        pulled during a call ends a newer adb with 255, an older one with 0, without a word."""
        lines = [line for line in said.splitlines() if line.startswith(("error: ", "adb: "))]
        if code == 0 or not (lines or code == LOST):
            return None
        if lines and "unauthorized" in lines[-1]:
            return "The device does not trust this machine yet", "unlock its screen and allow USB debugging"
        return (
            "The device cannot be reached, or the link broke",
            "`adb devices` lists what is there; then run the same command again: it goes on where it was",
        )

    def close(self) -> None:
        pass
