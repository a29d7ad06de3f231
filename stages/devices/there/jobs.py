"""One target measured on the device, in a process of its own; done once however often it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from stages.devices.there.files import flush, inside, listing, locked, root

LAST_LINES = 8


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The files of the result (`sha256`, `size` by path) in the folder `place`.

    A link that broke leaves the measurement running: the next request waits for it and takes its result.
    The process that measures holds the lock as well, so that no second one begins beside it if this one dies.
    Raises StageError with the process's last words if it ends without one.
    """
    folder = root(request)
    place = inside(folder, request["place"])
    place.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("ab") as file, locked(file.fileno(), place.name, request["limit_s"]):
        if not (place / "result.json").is_file():
            _work(folder, place, request, file.fileno())
    return {"files": listing(place)}


def _work(folder: Path, place: Path, request: dict[str, Any], lock: int) -> None:
    job = place.with_suffix(".job.json")
    named = {name: request[name] for name in ("bundle", "onnx", "images", "timings")}
    paths = {name: str(inside(folder, path)) if path else None for name, path in named.items()}
    job.write_text(json.dumps({**request, **paths, "output": str(place)}), encoding="utf-8")
    log = place / "log.txt"
    with log.open("wb") as said:
        try:
            status = subprocess.run(
                [sys.executable, sys.argv[0], "work", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
                timeout=request["limit_s"],
                pass_fds=(lock,),
            ).returncode
        except subprocess.TimeoutExpired:
            raise StageError(
                f"Measuring {request['target']} hung on the device",
                why=f"no result within {request['limit_s']:.0f} s",
                hint="run the same command again; if it hangs again, leave the target out",
            ) from None
    unfinished = place / "unfinished.json"
    if status or not unfinished.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise StageError(
            f"The process that measured {request['target']} ended without a result",
            where=f"target {request['target']}",
            why=f"status {status}: " + ("\n".join(lines[-LAST_LINES:]) or "it said nothing"),
            hint="fewer measure.batch_sizes need less memory; or leave the target out",
        )
    flush(unfinished)
    unfinished.replace(place / "result.json")
