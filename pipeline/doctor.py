"""What this machine is and can do: looked up where that is enough, tried where it is not."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import __version__, machine
from pipeline.child_process import environment, python_code, python_command
from pipeline.errors import KdpipeError
from pipeline.running.plan import resolve
from pipeline.store.store import Store
from stages import PACKAGE_CONFLICTS, REPORTED_DISTRIBUTIONS, STAGES, TRIAL

Facts = dict[str, Any]

TRIAL_TIMEOUT_S = 300.0
"""Enough to import a package or to build a network of a few layers: no trial depends on the user's model."""

LOCK_TRIAL = """
import fcntl, sys
file = open(sys.argv[1])
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except BlockingIOError:
    print("held")
"""


def examine(store: Path, tell: Callable[[str], None]) -> Facts:
    """Everything `kdpipe doctor` reports; `tell` hears what is being tried (it takes some seconds).

    `core`: whether every stage can run here, with one runtime at least.
    """
    facts: Facts = {
        "kdpipe": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "gpus": machine.gpus(),
        "clock": machine.clock(),
    }
    tell("trying the store's file system")
    facts["store"] = file_system(store)
    tell("importing every stage")
    facts["stages"] = stages()
    tell("asking every runtime")
    facts["targets"] = targets()
    tell("exporting a small network and running it")
    facts["build"] = small_build()
    facts["warnings"] = warnings(facts["versions"])
    facts["problems"] = problems(facts)
    facts["core"] = not facts["problems"]
    return facts


def problems(facts: Facts) -> list[str]:
    """Why the core stages cannot run here, a sentence each."""
    found = [f"stage {one['name']}: {one['why_not']}" for one in facts["stages"] if not one["can"]]
    store = facts["store"]
    found += [
        f"store: {store[trial]['why_not']}" for trial in ("locks", "rename") if not store[trial]["works"]
    ]
    if not facts["build"]["works"]:
        found.append(f"small build: {facts['build']['why_not']}")
    return found


def warnings(versions: dict[str, str | None]) -> list[str]:
    """What is installed side by side but does not go together, with the remedy, a sentence each."""
    conflicts: list[str] = resolve(PACKAGE_CONFLICTS)(versions)
    return conflicts


def versions() -> dict[str, str | None]:
    """Return the version of each of `stages.REPORTED_DISTRIBUTIONS`, None where it is not installed.

    Import none of them.
    """
    installed = machine.installed_versions(REPORTED_DISTRIBUTIONS)
    return {name: installed.get(name) for name in REPORTED_DISTRIBUTIONS}


def file_system(root: Path) -> Facts:
    """Free space, and whether locks and atomic renames work where the store lies.

    What is written for the trial is gone afterwards; a store that was not there is not there then
    either. Raises UsageError if the folder is no store.
    """
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    facts: Facts = {"path": str(root), "exists": root.exists(), "free_bytes": None}
    with contextlib.suppress(OSError):
        facts["free_bytes"] = shutil.disk_usage(there).free
    store = Store(root)
    store.check()
    try:
        store.prepare()
        with store.scratch() as folder:
            facts["locks"] = _outcome(_try_locks, folder)
            facts["rename"] = _outcome(_try_rename, folder)
    except KdpipeError as error:
        why_not = f"{error.what}: {error.where}: {error.why}"
        facts["locks"] = facts["rename"] = {"works": False, "why_not": why_not}
    finally:
        store.undo()
        store.release()
    return facts


def stages() -> list[Facts]:
    """For each stage whether its module and its libraries can be imported, and why not."""
    lines, ending = try_out("stages")
    told = {line["stage"]: line["why_not"] for line in lines if "stage" in line}
    return [
        {
            "name": stage.name,
            "can": stage.name in told and told[stage.name] is None,
            "why_not": told.get(stage.name, ending),
        }
        for stage in STAGES
    ]


def targets() -> list[Facts]:
    """Every target there is: whether it can be built and run here, and if not why and the remedy."""
    lines, ending = try_out("runtimes")
    names = next((line["runtimes"] for line in lines if "runtimes" in line), None)
    if names is None:
        return [_no_target("(none)", ending, None)]
    found = []
    for name in names:
        lines, ending = try_out("runtime", name)
        told = next((line for line in lines if line.get("runtime") == name), None)
        if told is None:
            found.append(_no_target(name, ending, None))
            continue
        fields = {key: told[key] for key in ("can_build", "can_run", "why_not", "hint")}
        found += [{"target": target, **fields} for target in told["targets"]]
    return found


def small_build() -> Facts:
    """A small network exported by PyTorch, loaded by a runtime, run, and compared."""
    lines, ending = try_out("build")
    return next((line for line in lines if "works" in line), {"works": False, "why_not": ending})


def _no_target(target: str, why_not: str, hint: str | None) -> Facts:
    return {"target": target, "can_build": False, "can_run": False, "why_not": why_not, "hint": hint}


def try_out(*words: str) -> tuple[list[Facts], str]:
    """The JSON lines that a trial printed, and in a sentence how it ended."""
    try:
        done = subprocess.run(
            python_command(TRIAL, *words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRIAL_TIMEOUT_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    lines = []
    for text in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, _ending(done.stderr) or f"its process ended with status {done.returncode}"


def _ending(stderr: str) -> str:
    """The last line that a process said; of a traceback, the line that names the exception."""
    lines = stderr.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("    ")]
    if "Traceback (most recent call last):" in lines and frames and frames[-1] + 1 < len(lines):
        return lines[frames[-1] + 1]
    return lines[-1] if lines else ""


def _outcome(attempt: Callable[[Path], str | None], folder: Path) -> Facts:
    try:
        why_not = attempt(folder)
    except (OSError, subprocess.SubprocessError) as error:
        why_not = str(error)
    return {"works": why_not is None, "why_not": why_not}


def _try_locks(folder: Path) -> str | None:
    """A lock that we hold must keep another process out, and let it in when we let go."""
    import fcntl

    def other_process() -> str:
        return subprocess.run(
            python_code(LOCK_TRIAL, str(path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()

    path = folder / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if other_process() != "held":
            return "file locks (flock) do not keep another process out on this file system"
    if other_process() != "free":
        return "a file lock (flock) outlives its process on this file system"
    return None


def _try_rename(folder: Path) -> str | None:
    """A folder flushed and renamed must be there whole, and its old name gone; a file replaces one."""
    before, after = folder / "before", folder / "after"
    before.mkdir()
    with (before / "content").open("wb") as file:
        file.write(b"kdpipe")
        file.flush()
        os.fsync(file.fileno())
    before.rename(after)
    if before.exists() or (after / "content").read_bytes() != b"kdpipe":
        return "renaming a folder is not atomic on this file system"
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    (folder / "new").replace(folder / "old")
    if (folder / "old").read_bytes() != b"new":
        return "a file cannot replace another on this file system"
    return None
