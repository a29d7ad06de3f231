"""Run one command line of kdpipe on some of this machine's cores.

    python -P -m pipeline.on_cores 0,1 - distill profile.yaml …

runs `kdpipe distill profile.yaml …` on the cores 0 and 1; `-` means all cores. The second word is a file with
the pickled profile, `-` for none. So a profile that was edited in the meantime is not read again.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import main as kdpipe


def main(words: Sequence[str]) -> int:
    """Run the command line `words[2:]` on the cores `words[0]`, and return its exit code."""
    cores, profile, *rest = words
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # The process that started this one wrote the file into its own scratch folder.
    loaded = None if profile == "-" else pickle.loads(Path(profile).read_bytes())  # noqa: S301 - a file of the parent
    return kdpipe(rest, loaded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
