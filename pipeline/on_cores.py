"""A program: one command line of kdpipe on some of this machine's cores.

    python -m pipeline.on_cores 0,1 distill profile.yaml …

is `kdpipe distill profile.yaml …` on the cores 0 and 1; `-` stands for all cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pipeline.cli import main as kdpipe


def main(words: Sequence[str]) -> int:
    cores, *rest = words
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    return kdpipe(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
