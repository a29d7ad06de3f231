"""Tries ncnn, in a process of its own: a network that it cannot load may crash the process.

    python -m stages.runtimes.ncnn.trial                            can the package be imported
    python -m stages.runtimes.ncnn.trial FOLDER PRECISION C H W     load a target and run it once

Ends with status 0 if all is well; otherwise the last line of standard error is the reason. Light until then.
"""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.child_process import last_line
from pipeline.heartbeat import Hung, Silence
from stages.runtimes.base import Source
from stages.runtimes.probe import run_module, run_module_while_alive

MODULE = "stages.runtimes.ncnn.trial"

TIMEOUT_S = 120.0
"""Enough to import the package."""


@functools.cache
def why_not_importable() -> str:
    """Return why the package cannot be imported, or "" if it can; it is tried once a process."""
    done = run_module(MODULE, timeout_s=TIMEOUT_S)
    return f"ncnn did not answer within {TIMEOUT_S:.0f} s" if done is None else _why_not(done)


def run_once(folder: Path, source: Source, silence: Silence | None = None) -> str:
    """Return why the target in `folder` cannot be loaded and run, or "" if it can.

    Args:
        folder: with the target's files.
        source: of the target.
        silence: how long ncnn may use no CPU time; how long it takes in all depends on the network.
    """
    height, width, channels = source.image_shape
    words = (str(folder), source.precision, str(channels), str(height), str(width))
    try:
        return _why_not(run_module_while_alive(MODULE, *words, doing="running it once", silence=silence))
    except Hung as why:
        return f"ncnn hung: {why}"


def _why_not(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return ""
    missing = sorted(set(re.findall(r"^layer (\S+) not exists or registered", done.stderr, re.MULTILINE)))
    if missing:
        return f"ncnn has no layer {', '.join(missing)}"
    if done.returncode < 0:
        return f"ncnn crashed ({signal.Signals(-done.returncode).name})"
    return last_line(done.stderr) or "ncnn gave no reason"


def main(words: list[str]) -> int:
    """Import ncnn, or load and run the target that the words name; return the exit code."""
    if not words:
        import ncnn

        return 0 if ncnn.Net() is not None else 1
    import numpy as np

    from pipeline.errors import StageError
    from stages.runtimes.ncnn.session import as_mat, infer, open_network

    folder, precision = Path(words[0]), words[1]
    shape = tuple(map(int, words[2:5]))
    try:
        network = open_network(folder, precision, threads=1)
        infer(network, as_mat(np.zeros(shape, np.float32)))
    except StageError as error:
        print(f"{error.what}: {error.why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
