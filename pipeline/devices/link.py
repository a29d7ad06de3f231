"""The link to a device: each call runs the program there, over the transport that the device's URL selects.

Every call is one process. It reads the request as JSON and writes the answer as JSON.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.devices.transport import transport
from pipeline.errors import DeviceCannot, StageError
from pipeline.hashing import hash_bytes
from pipeline.heartbeat import Beat, Heartbeat, Hung, Silence, beat_of, follow

ANSWER = b"\n\x1ekdpipe "
"""What precedes the answer in the program's output."""

BEAT = b"\x1ekdpipe-beat "
"""What precedes a beat in the program's output."""

ATTEMPTS = 3
"""How often a call is tried when the link breaks."""

RETRY_PAUSE_S = 1.0
"""The pause before the next attempt, in seconds."""

EXIT_OLD_PYTHON, EXIT_DAMAGED_PROGRAM = 8, 9
"""Exit codes of `_BOOTSTRAP`."""

INSTALL_HINTS = {
    "ssh": "install OpenSSH's client, e.g. apt-get install openssh-client",
    "adb": "install Android's platform tools, e.g. apt-get install adb",
}
"""How to install a program of this machine that a transport starts."""

_BOOTSTRAP = """
import sys
if "" in sys.path:
    sys.path.remove("")  # the home folder may have a json.py of its own
import hashlib, os, subprocess, sys, tempfile
if sys.version_info < (3, 10):
    sys.stderr.write("Python %d.%d" % sys.version_info[:2]); sys.exit(8)
place, name, sha256, verb = sys.argv[1:5]
content = sys.stdin.buffer.read()
if hashlib.sha256(content).hexdigest() != sha256:
    sys.exit(9)
with tempfile.TemporaryDirectory() as folder:
    if verb == "keep":
        folder = os.path.join(os.path.expanduser("~"), place)
        os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path + ".part", "wb") as file:
        file.write(content)
    os.replace(path + ".part", path)
    if verb == "keep":
        print("\\n\\x1ekdpipe {}")
    else:
        sys.exit(subprocess.run([sys.executable, "-B", path, verb], input=sys.argv[5].encode()).returncode)
"""
"""The script that checks the program's digest there, then saves the program (verb `keep`) or runs it once."""


class LinkLost(DeviceCannot):
    """The connection failed, or broke during the call."""


class Link:
    """A connection to one device; close it after use.

    Args:
        name: The device's name in the profile.
        settings: Its entry under `devices` in the profile.
        program: The bytes of the program that runs on the device.

    Attributes:
        name: The device's name.
        settings: Its entry in the profile.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], program: bytes) -> None:
        self.name = name
        self.settings = settings
        self._program = program
        self._sha256 = hash_bytes(program)
        self._file = f"program-{self._sha256[:16]}.pyz"
        self._transport = transport(name, settings)
        self._delivered = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        """Return the device's name and URL, for error messages."""
        return f"device {self.name} ({self.settings['url']})"

    def facts(self) -> dict[str, Any]:
        """Return the device's hardware and software; no files stay on the device.

        Raises:
            DeviceCannot: The device does not answer, or has no Python that can run the program.
        """
        request = json.dumps({"folder": self.settings["folder"]})
        command = [
            self._python,
            "-c",
            _BOOTSTRAP,
            self.settings["folder"],
            self._file,
            self._sha256,
            "facts",
            request,
        ]
        return self._parse_answer(*self._run(command, self._program))

    def connect(self) -> None:
        """Connect to the device and install the program there.

        Raises:
            DeviceCannot: The device does not answer, or has no Python that can run the program.
        """
        self._deliver_program()

    def call(
        self,
        verb: str,
        *,
        on_beat: Callable[[Beat], object] | None = None,
        silence: Silence | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Call the program on the device; if the link breaks, try again.

        Args:
            verb: The function of the program.
            on_beat: Takes the beats of a verb that sends them. While beats come, the call has no time limit.
            silence: How long the device may be silent, if `on_beat` is given.
            request: The arguments of the verb.

        Returns:
            The answer.

        Raises:
            LinkLost: The link broke in every attempt.
            StageError: The program on the device failed, or the device fell silent.
        """
        content = json.dumps({"folder": self.settings["folder"], **request}).encode()
        for attempt in range(ATTEMPTS):
            try:
                self._deliver_program()
                output = self._run([*self._agent, verb], content, on_beat, silence or Silence())
                return self._parse_answer(*output)
            except LinkLost:
                if attempt + 1 == ATTEMPTS or self._stopped:
                    raise
                self._delivered = False
                time.sleep(RETRY_PAUSE_S)
        raise AssertionError  # the last attempt returned or raised

    def send(self, file: Path, sha256: str, size_bytes: int, offset: int) -> dict[str, Any]:
        """Send a file.

        Args:
            file: The file on this machine.
            sha256: The SHA-256 of the whole file, in hex.
            size_bytes: The size of the whole file.
            offset: The first byte to send.

        Returns:
            `whole` (whether the device has the whole file) and `received` (how many bytes it has).

        Raises:
            LinkLost: The link broke.
            StageError: The file arrived damaged, or the device cannot store it.
        """
        self._deliver_program()
        request = {"folder": self.settings["folder"], "sha256": sha256, "size": size_bytes, "offset": offset}
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return self._parse_answer(*self._run([*self._agent, "receive", json.dumps(request)], stream))

    def stop(self) -> None:
        """End the calls that are running; another thread may call this."""
        self._stopped = True
        for child in list(self._running):
            child.kill()

    def close(self) -> None:
        """End the calls that are running and the shared connection."""
        self.stop()
        self._transport.close()

    @property
    def _python(self) -> str:
        return str(self.settings["python"])

    @property
    def _agent(self) -> list[str]:
        return [self._python, "-B", str(PurePosixPath(self.settings["folder"]) / self._file)]

    def _deliver_program(self) -> None:
        """Save the program in the device's folder, once for each connection."""
        if self._delivered:
            return
        command = [self._python, "-c", _BOOTSTRAP, self.settings["folder"], self._file, self._sha256, "keep"]
        # The answer is checked because adb may exit with 0 although the link broke.
        self._parse_answer(*self._run(command, self._program))
        self._delivered = True

    def _run(
        self,
        command: list[str],
        stdin: bytes | IO[bytes],
        on_beat: Callable[[Beat], object] | None = None,
        silence: Silence | None = None,
    ) -> tuple[int, bytes, str]:
        """Run a command in the device's home folder.

        Args:
            command: The command's words.
            stdin: Its standard input.
            on_beat: Takes the beats among the output.
            silence: How long the device may be silent, if `on_beat` is given.

        Returns:
            Exit code, standard output without beats, and standard error.

        Raises:
            DeviceCannot: The transport's program cannot be started on this machine.
            StageError: The device fell silent.
        """
        process_command = self._transport.command(command)
        local = self.settings["url"] == "local"
        with tempfile.TemporaryFile() as stdin_file, tempfile.TemporaryFile() as stderr_file:
            stream: IO[bytes] = stdin_file
            if isinstance(stdin, bytes):  # through a file: adb does not always notice the end of a pipe
                stdin_file.write(stdin)
                stdin_file.seek(0)
            else:
                stream = stdin
            try:
                child = subprocess.Popen(
                    process_command,
                    stdin=stream,
                    stdout=subprocess.PIPE,
                    stderr=stderr_file,
                    cwd=Path.home() if local else None,
                )
            except OSError as error:
                raise self._start_error(process_command[0], error) from error
            self._running.add(child)
            try:
                if on_beat and silence:
                    stdout = self._read_with_beats(child, on_beat, silence)
                else:
                    stdout = child.communicate()[0]
                child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
                self._running.discard(child)
            stderr_file.seek(0)
            stderr = stderr_file.read().decode(errors="replace").strip()
        return child.returncode, stdout, stderr

    def _read_with_beats(
        self, child: subprocess.Popen[bytes], on_beat: Callable[[Beat], object], silence: Silence
    ) -> bytes:
        """Return standard output without the beats.

        The program on the device applies the heartbeat rule to the measurement. Each of its beats proves
        that it still does so, and this machine applies the rule to the program.

        Raises:
            StageError: The device fell silent.
        """
        assert child.stdout is not None
        heartbeat, beats, output = Heartbeat(silence, time.monotonic()), 0, b""
        with child.stdout:
            try:
                for line in follow(child, heartbeat):
                    beat = beat_of(line.removeprefix(BEAT)) if line.startswith(BEAT) else None
                    if beat is None:
                        output += line + b"\n"
                        continue
                    beats += 1
                    heartbeat.beat(Beat("the device", beats, detail=beat.words()), time.monotonic())
                    on_beat(beat)
            except Hung as error:
                raise StageError(
                    "The device fell silent",
                    where=self.where,
                    why=str(error),
                    hint="run the same command again: it continues where it stopped",
                ) from None
        return output

    def _parse_answer(self, exit_code: int, stdout: bytes, stderr: str) -> dict[str, Any]:
        self._raise_for_exit_code(exit_code, stderr)
        _, marker, line = stdout.rpartition(ANSWER)
        if not marker:
            raise LinkLost(
                "The device's answer is missing",
                where=self.where,
                why=stderr or "the link broke before the answer came",
            )
        answer: dict[str, Any] = json.loads(line)
        fault = answer.get("fault")
        if fault:
            where = f"{self.where}, {fault['where']}" if fault.get("where") else self.where
            raise StageError(fault["what"], where=where, why=fault.get("why", ""), hint=fault.get("hint", ""))
        return answer

    def _raise_for_exit_code(self, exit_code: int, stderr: str) -> None:
        if exit_code == 0:
            return
        link_fault = self._transport.link_fault(exit_code, stderr)
        if link_fault:
            what, hint = link_fault
            lines = [line for line in stderr.splitlines() if line.strip()]
            why = "\n".join(lines[-3:]) or "the connection gave no reason"
            raise LinkLost(what, where=self.where, why=why, hint=hint)
        if exit_code == EXIT_OLD_PYTHON and "Python" in stderr:
            raise DeviceCannot(
                "The device's Python is too old",
                where=self.where,
                why=f"found {stderr[stderr.rfind('Python') :]}, expected Python 3.10 or later",
                hint=f"set another Python with devices.{self.name}.python",
            )
        if exit_code == EXIT_DAMAGED_PROGRAM:
            raise LinkLost("The program arrived damaged on the device", where=self.where)
        if exit_code in (126, 127):
            raise DeviceCannot(
                "The device has no such Python",
                where=self.where,
                why=stderr or f"exit code {exit_code} for {self._python}",
                hint=self._transport.python_hint % self.name,
            )
        if exit_code < 0:
            raise LinkLost(
                "The call of the device was ended by a signal", where=self.where, why=f"signal {-exit_code}"
            )
        raise StageError(
            "The program on the device failed",
            where=self.where,
            why="\n".join(stderr.splitlines()[-5:]) or f"exit code {exit_code}",
            hint="if the device's disk is full, free space there; otherwise run with -v and report the error",
        )

    def _start_error(self, program: str, error: OSError) -> DeviceCannot:
        hint = INSTALL_HINTS.get(program, f"set a Python with devices.{self.name}.python")
        return DeviceCannot(f"{program} cannot be started", where=self.where, why=str(error), hint=hint)
