"""What a trtexec is, told by itself. Light: Python's standard library alone."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A trtexec. `version` as 10.13.0; `by_default`: it leaves copies out and captures graphs unasked."""

    path: str
    version: str
    by_default: bool

    def words(self, *, graph: bool, transfers: bool) -> list[str]:
        """How inferences are launched, in this program's words."""
        if self.by_default:
            return ["--noCudaGraph"] * (not graph) + ["--includeDataTransfers"] * transfers
        return ["--useSpinWait", *["--useCudaGraph"] * graph, *["--noDataTransfers"] * (not transfers)]


def inspect(path: str) -> Program:
    """What the program at `path` tells of itself: its banner has the version, its help the words it knows."""
    said = subprocess.run(
        [path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout
    found = re.search(r"\[TensorRT v(\d+)\]", said)
    number = int(found[1]) if found else 0
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}" if found else "unknown"
    return Program(path, version, by_default="--includeDataTransfers" in said)
