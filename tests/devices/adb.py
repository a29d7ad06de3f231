"""A stand-in for `adb`: one device, which is a folder of this machine.

It has what matters of the real one: the words after `shell` are joined by blanks and taken apart by the
device's shell, which starts at `/` with a `HOME` that cannot be written; exit codes and both streams come
through; without `-T` bytes are changed as a terminal would; its own faults are exit code 1 and a line on
standard error, but a cable that is pulled during a call ends it without a word: with 0, a newer one with 255.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

STAND_IN = """#!{python}
import subprocess, sys
FOLDER, STATE = {folder!r}, {state!r}
words = sys.argv[1:]
state = open(STATE).read().strip()
def fail(text):
    sys.stderr.write(text + "\\n")
    sys.exit(1)
if words == ["devices"]:
    print("List of devices attached\\nBOARD01\\t" + state + "\\n")
    sys.exit(0)
if words[:1] != ["-s"]:
    fail("adb: more than one device/emulator")
serial, verb, words = words[1], words[2], words[3:]
if serial != "BOARD01" or state == "gone":
    fail("adb: device '%s' not found" % serial)
if state == "unauthorized":
    fail("error: device unauthorized.\\nThis adb server's $ADB_VENDOR_KEYS is not set")
if verb == "get-state":
    print(state)
    sys.exit(0)
if verb != "shell":
    fail("adb: unknown command " + verb)
raw = words[:1] == ["-T"]
text = " ".join(words[raw:]).replace("/data/local/tmp", FOLDER)
there = {{"HOME": "/proc", "PATH": "/usr/bin:/bin"}}
shell = ["/bin/sh", "-c", text]
if state == "dies once":
    open(STATE, "w").write("device")
    sys.exit(0)  # before the command began
done = subprocess.run(shell, stdin=sys.stdin, stdout=subprocess.PIPE, cwd="/", env=there)
if state == "noisy" and " fetch" in text:
    done.stdout = done.stdout.replace(b'"bytes": "', b'"bytes": "AAAA', 1)
if state in ("dies", "cut"):
    sys.exit(255 if state == "cut" else 0)
sys.stdout.buffer.write(done.stdout if raw else done.stdout.replace(b"\\n", b"\\r\\n"))
sys.stdout.flush()
sys.exit(done.returncode)
"""


def stand_in(folder: Path) -> tuple[Path, Path, Path]:
    """(a folder for the PATH with `adb`, the file of the device's state, its /data/local/tmp)."""
    binaries, state, home = folder / "bin", folder / "state", folder / "tmp"
    binaries.mkdir()
    home.mkdir()
    state.write_text("device")
    program = binaries / "adb"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(home), state=str(state)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return binaries, state, home


def path_with(binaries: Path) -> str:
    return f"{binaries}{os.pathsep}{os.environ['PATH']}"
