"""The link to a device: its program called there, over whatever the device's address names.

Every call is one process that is asked and answers in JSON.
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
BEAT = b"\x1ekdpipe-beat "
TRIES = 3
PAUSE_S = 1.0
TOO_OLD, DAMAGED = 8, 9
INSTALL = {
    "ssh": "install OpenSSH's client, e.g. apt-get install openssh-client",
    "adb": "install Android's platform tools, e.g. apt-get install adb",
}

_BOOT = """
import sys
if "" in sys.path:
    sys.path.remove("")  # the home folder: a json.py there is not Python's own
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


class LinkLost(DeviceCannot):
    """The connection could not be made, or broke on the way."""


class Link:
    """One device. `settings`: its entry under `devices` in the profile. Close it in the end."""

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

    def __exit__(self, *ending: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        return f"device {self.name} ({self.settings['url']})"

    def facts(self) -> dict[str, Any]:
        """What the device is and has; nothing is left there. Raises DeviceCannot."""
        request = json.dumps({"folder": self.settings["folder"]})
        command = [
            self._python,
            "-c",
            _BOOT,
            self.settings["folder"],
            self._file,
            self._sha256,
            "facts",
            request,
        ]
        return self._answer(*self._run(command, self._program))

    def reach(self) -> None:
        """Raises DeviceCannot if the device does not answer, or has no such Python."""
        self._deliver()

    def ask(
        self,
        verb: str,
        *,
        heard: Callable[[Beat], object] | None = None,
        silence: Silence | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Ask the program on the device; a broken link is tried anew.

        Args:
            verb: what to ask for.
            heard: takes the beats of a verb that sends them: then the device may take as long as it beats.
            silence: how long it may be silent then.
            request: what the verb needs.

        Returns:
            The answer.

        Raises:
            LinkLost: the link broke again and again.
            StageError: a fault on the device, or it fell silent.
        """
        asked = json.dumps({"folder": self.settings["folder"], **request}).encode()
        for attempt in range(TRIES):
            try:
                self._deliver()
                return self._answer(*self._run([*self._agent, verb], asked, heard, silence or Silence()))
            except LinkLost:
                if attempt + 1 == TRIES or self._stopped:
                    raise
                self._delivered = False
                time.sleep(PAUSE_S)
        raise AssertionError  # the last attempt returned or raised

    def send(self, file: Path, sha256: str, size_bytes: int, offset: int) -> dict[str, Any]:
        """Sends a file from `offset` on: `whole`, or how much of it was `received`. Raises LinkLost."""
        self._deliver()
        request = {"folder": self.settings["folder"], "sha256": sha256, "size": size_bytes, "offset": offset}
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return self._answer(*self._run([*self._agent, "receive", json.dumps(request)], stream))

    def stop(self) -> None:
        """Ends what is being asked now, from another thread."""
        self._stopped = True
        for child in list(self._running):
            child.kill()

    def close(self) -> None:
        """Ends the shared connection."""
        self.stop()
        self._transport.close()

    @property
    def _python(self) -> str:
        return str(self.settings["python"])

    @property
    def _agent(self) -> list[str]:
        return [self._python, "-B", str(PurePosixPath(self.settings["folder"]) / self._file)]

    def _deliver(self) -> None:
        """Puts the program into the device's folder, where it is not there in this very form."""
        if self._delivered:
            return
        command = [self._python, "-c", _BOOT, self.settings["folder"], self._file, self._sha256, "keep"]
        self._answer(*self._run(command, self._program))  # adb may end with 0 although the link broke
        self._delivered = True

    def _run(
        self,
        command: list[str],
        feed: bytes | IO[bytes],
        heard: Callable[[Beat], object] | None = None,
        silence: Silence | None = None,
    ) -> tuple[int, bytes, str]:
        """Exit code, standard output and standard error of a command in the device's home folder.

        heard: takes the beats among the output; then Raises StageError if the device falls silent.
        """
        whole = self._transport.command(command)
        local = self.settings["url"] == "local"
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
            stream: IO[bytes] = given
            if isinstance(feed, bytes):  # from a file: adb does not always see that a pipe has ended
                given.write(feed)
                given.seek(0)
            else:
                stream = feed
            try:
                child = subprocess.Popen(
                    whole,
                    stdin=stream,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=Path.home() if local else None,
                )
            except OSError as error:
                raise self._absent(whole[0], error) from error
            self._running.add(child)
            try:
                out = self._followed(child, heard, silence) if heard and silence else child.communicate()[0]
                child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
                self._running.discard(child)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
        return child.returncode, out, said

    def _followed(
        self, child: subprocess.Popen[bytes], heard: Callable[[Beat], object], silence: Silence
    ) -> bytes:
        """Standard output without the beats. The program on the device judges the measurement; each of its
        beats proves that it still does, so here it is judged itself. Raises StageError if it falls silent."""
        assert child.stdout is not None
        heartbeat, beats, out = Heartbeat(silence, time.monotonic()), 0, b""
        with child.stdout:
            try:
                for line in follow(child, heartbeat):
                    beat = beat_of(line.removeprefix(BEAT)) if line.startswith(BEAT) else None
                    if beat is None:
                        out += line + b"\n"
                        continue
                    beats += 1
                    heartbeat.beat(Beat("the device", beats, detail=beat.words()), time.monotonic())
                    heard(beat)
            except Hung as why:
                raise StageError(
                    "The device fell silent",
                    where=self.where,
                    why=str(why),
                    hint="run the same command again: it goes on where it was",
                ) from None
        return out

    def _answer(self, code: int, out: bytes, said: str) -> dict[str, Any]:
        self._checked(code, out, said)
        _, found, line = out.rpartition(ANSWER)
        if not found:
            raise LinkLost(
                "The device's answer is missing",
                where=self.where,
                why=said or "the link broke before it came",
            )
        answer: dict[str, Any] = json.loads(line)
        fault = answer.get("fault")
        if fault:
            where = f"{self.where}, {fault['where']}" if fault.get("where") else self.where
            raise StageError(fault["what"], where=where, why=fault.get("why", ""), hint=fault.get("hint", ""))
        return answer

    def _checked(self, code: int, out: bytes, said: str) -> None:
        if code == 0:
            return
        broke = self._transport.broke(code, said)
        if broke:
            lines = [line for line in said.splitlines() if line.strip()]
            why = "\n".join(lines[-3:]) or "no reason was given"
            raise LinkLost(broke[0], where=self.where, why=why, hint=broke[1])
        if code == TOO_OLD and "Python" in said:
            raise DeviceCannot(
                "The device's Python is too old",
                where=self.where,
                why=f"found {said[said.rfind('Python') :]}, expected Python 3.10 or later",
                hint=f"name another with devices.{self.name}.python",
            )
        if code == DAMAGED:
            raise LinkLost("The program arrived damaged on the device", where=self.where)
        if code in (126, 127):
            raise DeviceCannot(
                "The device has no such Python",
                where=self.where,
                why=said or f"exit code {code} for {self._python}",
                hint=self._transport.python_hint % self.name,
            )
        if code < 0:
            raise LinkLost("The call of the device was ended", where=self.where, why=f"signal {-code}")
        raise StageError(
            "The program on the device failed",
            where=self.where,
            why="\n".join(said.splitlines()[-5:]) or f"exit code {code}",
            hint="if its disk is full, make room; else run with -v and report it",
        )

    def _absent(self, program: str, error: OSError) -> DeviceCannot:
        hint = INSTALL.get(program, f"name a Python with devices.{self.name}.python")
        return DeviceCannot(f"{program} cannot be started", where=self.where, why=str(error), hint=hint)
