"""Compare our p50 with a plain loop over the runtime's Python API and with OpenVINO's benchmark_app.

    python benchmarks/bench_latency_harness.py [--repeats N] [--seconds S] [--model NAME] [--threads T]

All contenders use the same network (fp32, batch 1), threads, cores and input size. They take turns, each time
in a new process and in another order. ONNX Runtime's wheel has no benchmark tool of its own, so there is only
the plain loop. benchmark_app prints its median to 0.01 ms, so choose a network that takes several ms. A ratio
compares the p50s of the same turn. The goal is within 3 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency_subjects import subject, where

from stages.measuring import launch
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings

GOAL = 0.03

PLAIN = """
import json, sys, time
import numpy as np
kind, file, size, threads, seconds = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
images = np.random.default_rng(0).standard_normal((1, 3, int(size), int(size))).astype(np.float32)
if kind == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(threads), 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, images)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    def once():
        session.run_with_iobinding(binding)
else:
    import openvino
    compiled = openvino.Core().compile_model(file, "CPU", {
        "INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
    def once():
        request.start_async()
        request.wait()
for _ in range(10):
    once()
times, until = [], time.perf_counter() + seconds
while time.perf_counter() < until:
    before = time.perf_counter_ns()
    once()
    times.append(time.perf_counter_ns() - before)
print(json.dumps([float(np.median(times)) * 1e-6, len(times)]))
"""


@dataclass
class Contender:
    """A way to measure a latency. `run` returns a turn's p50 in milliseconds and its number of inferences."""

    name: str
    run: Callable[[], tuple[float, int]]
    p50_ms: list[float] = field(default_factory=list)
    n: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="sampling time of each turn")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.model}, {options.size} pixels, batch 1, fp32, {options.threads} threads")
    print("\n".join(where()), end="\n\n")
    header = f"{'runtime':<12} {'contender':<14} {'p50 ms':>9} {'lowest':>9} {'highest':>9} {'n':>7}"
    print(f"{header} {'ours / its':>11} {'lowest':>7} {'highest':>8}")
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        for runtime in ("onnxruntime", "openvino"):
            target = subject(Path(folder), runtime, model=options.model, size=options.size, runtime=runtime)
            _table(runtime, _contenders(target, options), options.repeats)


def _contenders(target: Subject, options: argparse.Namespace) -> list[Contender]:
    measure = MeasureSettings(
        duration_s=options.seconds, max_duration_s=2 * options.seconds, resamples=100, energy_idle_s=0.01
    )
    threads, size = options.threads, options.size
    cores = launch.cores_for(measure, threads)
    os.sched_setaffinity(0, cores)  # child processes inherit it, so all run on the same cores
    runtime = target.target["runtime"]
    file = target.folder / ("model.onnx" if runtime == "onnxruntime" else "model.xml")

    def ours() -> tuple[float, int]:
        result, _ = launch.run(target, measure, "latency", batch=1, threads=threads)
        return result["entry"]["p50_ms"], result["entry"]["n"]

    def plain() -> tuple[float, int]:
        words = [runtime, str(file), str(size), str(threads), str(options.seconds)]
        process = subprocess.run([sys.executable, "-c", PLAIN, *words], capture_output=True, check=True)
        p50, n = json.loads(process.stdout)
        return p50, n

    def benchmark_app() -> tuple[float, int]:
        return _benchmark_app(file, target.work, threads, options.seconds)

    contenders = [Contender("kdpipe", ours), Contender("plain loop", plain)]
    return contenders + [Contender("benchmark_app", benchmark_app)] * (runtime == "openvino")


def _benchmark_app(file: Path, folder: Path, threads: int, seconds: float) -> tuple[float, int]:
    """Run OpenVINO's own tool, synchronous, with one stream; it takes its time in whole seconds."""
    command = [
        *(str(Path(sys.executable).with_name("benchmark_app")), "-m", str(file), "-d", "CPU"),
        *("-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-pin", "NO"),
        *("-infer_precision", "f32", "-t", str(max(1, round(seconds)))),
        *("-json_stats", "-report_type", "no_counters", "-report_folder", str(folder)),
    ]
    subprocess.run(command, capture_output=True, check=True)
    report = json.loads((folder / "benchmark_report.json").read_text(encoding="utf-8"))
    results = report["execution_results"]
    return float(results["latency (ms)"]), int(results["total number of iterations"])


def _table(runtime: str, contenders: list[Contender], repeats: int) -> None:
    for turn in range(repeats):
        for position in range(len(contenders)):
            contender = contenders[(position + turn) % len(contenders)]
            p50_ms, n = contender.run()
            contender.p50_ms.append(p50_ms)
            contender.n.append(n)
    ours = np.array(contenders[0].p50_ms)
    for contender in contenders:
        its = np.array(contender.p50_ms)
        ratios = ours / its
        line = f"{runtime:<12} {contender.name:<14} {np.median(its):9.4f} {its.min():9.4f} {its.max():9.4f}"
        line += f" {sum(contender.n):7d} {np.median(ratios):11.4f} {ratios.min():7.3f} {ratios.max():8.3f}"
        verdict = "" if contender is contenders[0] else _verdict(float(np.median(ratios)))
        print(line + verdict, flush=True)


def _verdict(ratio: float) -> str:
    return "  within 3 %" if abs(ratio - 1.0) <= GOAL else "  beyond 3 %"


if __name__ == "__main__":
    main()
