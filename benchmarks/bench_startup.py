"""Measure the start-up time of the command line: --help, plan and a fully cached run, and a progress update.

    python benchmarks/bench_startup.py [--profile FILE] [--store DIR] [--runs N]

Each command is a new process, measured in wall time. The commands take turns with `python -c pass`. The
cached run needs a store in which the profile is up to date. Without --store, the program makes a store in a
temporary folder: it runs the profile with the tiny settings below (about a minute).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGSHIP = ROOT / "profiles" / "resnet_to_mobilenet.yaml"
TINY = (
    "train.epochs=1",
    "train.fraction=0.1",
    "distill.epochs=1",
    "distill.fraction=0.1",
    "distill.baseline=false",
    "targets=[onnxruntime-fp32]",
    "measure.duration_s=0.1",
    "measure.max_duration_s=0.1",
    "measure.compare_s=0",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, default=FLAGSHIP)
    parser.add_argument("--store", type=Path, help="a store in which the unchanged profile is up to date")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        overrides: list[str] = []
        store = options.store
        if store is None:
            store = Path(folder) / "store"
            overrides = [word for setting in TINY for word in ("--set", setting)]
            _log(f"making a store with {' '.join(TINY)}")
        arguments = [str(options.profile), "--store", str(store), *overrides]
        process = subprocess.run(
            _kdpipe("run", *arguments, "-q"), stdout=subprocess.DEVNULL, env=_environment(), check=False
        )
        if process.returncode:
            sys.exit(f"the run that fills the store ended with exit code {process.returncode}")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import click'": [sys.executable, "-c", "import click"],
            "kdpipe --help": _kdpipe("--help"),
            "kdpipe plan (all cached)": _kdpipe("plan", *arguments),
            "kdpipe run (all cached)": _kdpipe("run", *arguments),
        }
        times_s = _time(commands, options.runs)
    update_ns = _update_ns()
    if options.json:
        print(
            json.dumps(
                {"schema_version": 1, "seconds": times_s, "update_ns": update_ns, **_where()}, indent=2
            )
        )
        return
    bare = statistics.median(times_s["python -c pass"])
    print(f"{'command':<26}  {'min ms':>8}  {'median ms':>9}  {'x python':>8}")
    for name, times in times_s.items():
        median = statistics.median(times)
        print(f"{name:<26}  {1e3 * min(times):8.1f}  {1e3 * median:9.1f}  {median / bare:8.1f}")
    print(f"\n{options.runs} runs of each command, in turns, files in the page cache")
    print(f"Progress.update: {update_ns:.0f} ns a call")
    for name, value in _where().items():
        print(f"{name}: {value}")


def _time(commands: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    """Return the seconds of each run; the commands take turns, so a disturbance affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(), check=True
            )
            if number:  # the first round fills the caches
                times[name].append(time.perf_counter() - began)
    return times


def _update_ns(calls: int = 200_000) -> float:
    """Return the nanoseconds of a call of a stage's `Progress.update` while the progress is drawn."""
    sys.path.insert(0, str(ROOT))
    from pipeline.console.console import Console
    from pipeline.console.progress import ConsoleListener

    with (
        Path(os.devnull).open("w", encoding="utf-8") as sink,
        ConsoleListener(Console(sink, sink), ("train",)) as listener,
    ):
        update = listener.progress("train").update
        began = time.perf_counter_ns()
        for number in range(calls):
            update(number, calls, "images", epoch=3, val_top1=97.25)
        return (time.perf_counter_ns() - began) / calls


def _where() -> dict[str, str]:
    cpus = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    model = cpus[0].partition(":")[2].strip() if cpus else platform.processor()
    return {
        "machine": f"{model}, {len(cpus) or os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}",
        "versions": ", ".join(
            [
                f"Python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in ("click", "pydantic")),
            ]
        ),
    }


def _kdpipe(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
