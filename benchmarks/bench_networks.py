"""Run eight kinds of network on every target; print a table of figures, or the reasons why there are none.

    python benchmarks/convert_cifar.py CIFAR10 DATA --parts 1 --test-images 4000
    python benchmarks/bench_networks.py --data DATA [--store DIR] [--only NAME ...] [--targets NAME ...]
        [--set KEY=VALUE ...] [--output FILE]

CIFAR10 is CIFAR-10 in the format that `convert_cifar.py --help` describes. DATA gets the smaller set. For
each profile in benchmarks/networks, `kdpipe run` trains, distills, exports, quantizes, builds and measures;
cached stages come from the store. The targets are all targets of all runtimes. If this machine cannot build
or run a target, the table contains the reason. If a network cannot be quantized, the program runs its other
targets without the INT8 targets. The table is markdown, made only from the artefacts. The program prints it
and writes it to FILE.

The exit code is 1 if a target has neither figures nor a reason, 2 if the arguments are invalid, otherwise 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks_table import Outcome, markdown, rows_of, sentence, students

from pipeline import machine
from stages.runtimes import registry

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "benchmarks" / "networks"
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "openvino", "ncnn", "tensorrt-rtx", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("--store", type=Path, help="kdpipe's store (default: kdpipe's own)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=networks(), help=", ".join(networks()))
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="these targets instead of all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="passed to kdpipe"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this file")
    options = parser.parse_args()
    if not (options.data / "train.npz").is_file():
        parser.error(f"{options.data} contains no train.npz: make it with convert_cifar.py, see --help")
    targets = options.targets or all_targets()
    outcomes = [run(name, targets, options) for name in options.only or networks()]
    rows = [row for outcome in outcomes for row in rows_of(outcome, targets)]
    text = "\n\n".join(("\n".join(where(outcomes)), students(outcomes), markdown(rows)))
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    silent = [f"{row.network} {row.target}" for row in rows if row.silent]
    if silent:
        print(f"neither figures nor a reason: {', '.join(silent)}", file=sys.stderr)
    return 1 if silent else 0


def networks() -> list[str]:
    """Return the names of the profiles, without base profiles (they begin with an underscore)."""
    return sorted(path.stem for path in PROFILES.glob("[!_]*.yaml"))


def all_targets() -> list[str]:
    """Return every target of every runtime, including those that this machine cannot build."""
    return [f"{name}-{precision}" for name in registry.names() for precision in registry.get(name).precisions]


def run(network: str, targets: Sequence[str], options: argparse.Namespace) -> Outcome:
    """Run the pipeline; if quantizing fails, run it again without INT8."""
    code, document = kdpipe(network, targets, options)
    fault = fault_of(code, document)
    plain = [target for target in targets if not target.endswith("-int8")]
    failed = [stage["name"] for stage in document.get("stages", []) if stage["status"] == "failed"]
    left_out: Mapping[str, str] = {}
    if fault and failed == ["quantize"] and 0 < len(plain) < len(targets):
        left_out = {target: fault for target in targets if target not in plain}
        code, document = kdpipe(network, plain, options)
        fault = fault_of(code, document)
    done = [stage for stage in document.get("stages", []) if stage["path"]]
    return Outcome(
        network=network,
        folders={stage["name"]: Path(stage["path"]) for stage in done},
        metrics={stage["name"]: stage["metrics"] for stage in done},
        fault=fault,
        left_out=left_out,
    )


def kdpipe(network: str, targets: Sequence[str], options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Run `kdpipe run` up to measuring; return its exit code and document. Progress is on standard error."""
    settings = [f"data.root={options.data.absolute()}", f"targets=[{','.join(targets)}]", *options.overrides]
    command = [sys.executable, "-m", "pipeline", "run", str(PROFILES / f"{network}.yaml"), "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--until", "measure", "--no-progress"]
    if options.store:
        command += ["--store", str(options.store.absolute())]
    print(f"== {network}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        document = {}
    return done.returncode, document


def fault_of(code: int, document: Mapping[str, Any]) -> str | None:
    """Return the error of a run as a sentence, or None if it finished."""
    if code == 0:
        return None
    error = document.get("error")
    if not error:
        return f"kdpipe ended with exit code {code} and printed no error"
    return sentence(": ".join(part for part in (error["what"], error["why"]) if part))


def where(outcomes: Sequence[Outcome]) -> list[str]:
    """Describe the machine, the versions and the number of images behind the figures."""
    here = machine.describe()
    cards = [outcome.read("measure", "scorecard.json") for outcome in outcomes]
    images = sorted({card["test_images"] for card in cards if card})
    return [
        f"- machine: {here['cpu']}, {here['cores']} cores ({', '.join(here['cpu_flags'])}), {here['system']}",
        f"- load average at the end: {machine.load_average()}",
        f"- Python {here['python']}, " + ", ".join(_versions()),
        f"- test images: {', '.join(map(str, images)) or 'none'}",
    ]


def _versions() -> list[str]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return versions


if __name__ == "__main__":
    sys.exit(main())
