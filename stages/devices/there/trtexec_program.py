"""The facts of a trtexec, read from its help. Light: Python's standard library only."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A trtexec.

    Attributes:
        path: where it is.
        version: e.g. 10.13.0.
        by_default: without options it leaves copies out and captures graphs.
    """

    path: str
    version: str
    by_default: bool

    def launch_options(self, *, graph: bool, transfers: bool) -> list[str]:
        """Return this program's options for how inferences are launched."""
        if self.by_default:
            return ["--noCudaGraph"] * (not graph) + ["--includeDataTransfers"] * transfers
        return ["--useSpinWait", *["--useCudaGraph"] * graph, *["--noDataTransfers"] * (not transfers)]


def inspect(path: str) -> Program:
    """Return the facts of the program at `path`: its banner has the version, its help the options."""
    output = subprocess.run(  # noqa: S603 - the device's own trtexec
        [path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout
    banner = re.search(r"\[TensorRT v(\d+)\]", output)
    number = int(banner[1]) if banner else 0
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}" if banner else "unknown"
    return Program(path, version, by_default="--includeDataTransfers" in output)
