"""Measure the cost of a distillation method: a training step with msdcrd, with kd, and with only the labels.

    python benchmarks/bench_method_step.py [--device cpu] [--batch 64] [--samples 15] [--all] [--json]

The student is mobilenetv3_small_050 and the teacher resnet18 at half width, both with the small stem, on
images of 32 pixels. A step is the teacher's forward pass (not with only the labels), the student's forward
and backward pass, and the optimiser's step. The methods take turns, so a busy machine slows down all of them.
The program prints the medians and their ratios, in wall time and in CPU time of the process (which varies
less on a busy machine).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.functional import cross_entropy

from pipeline.errors import ModelError
from stages.methods.base import Batch
from stages.methods.observed import ObservedTeacher
from stages.methods.registry import make, needs
from stages.methods.settings import BUILT_IN, KdSettings, MethodSettings, MsdcrdSettings
from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings

SIZE, CLASSES, WARMUP = 32, 10, 3
TRAINING_IMAGES = 50_000
STUDENT = ModelSettings(model="mobilenetv3_small_050", stem="small")
TEACHER = ModelSettings(model="resnet18", stem="small", options={"channels": [32, 64, 128, 256]})
LABELS_ONLY = "labels only"
DEFAULT_METHODS: dict[str, MethodSettings | None] = {
    LABELS_ONLY: None,
    "kd": KdSettings(name="kd"),
    "msdcrd": MsdcrdSettings(name="msdcrd"),
}
OTHER_STUDENT = "simkd"
"""A method whose student is another network, so its step is not comparable."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--all", action="store_true", help="every built-in method except simkd")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    methods = DEFAULT_METHODS | (every_method() if options.all else {})
    steps = {}
    for name, settings in methods.items():
        try:
            steps[name] = step(settings, device, options.batch)
        except ModelError as error:
            print(f"{name}: does not fit these networks: {error}", file=sys.stderr)
    wall_ms: dict[str, list[float]] = {name: [] for name in steps}
    cpu_ms: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARMUP + options.samples):
        for name, run in steps.items():
            wall, cpu = timed(run, device)
            if turn >= WARMUP:
                wall_ms[name].append(wall * 1e3)
                cpu_ms[name].append(cpu * 1e3)
    rows = {name: summary(name, wall_ms, cpu_ms) for name in steps}
    if options.json:
        facts = {
            "schema_version": 1,
            "machine": machine(device),
            "batch": options.batch,
            "n": options.samples,
            "steps": rows,
        }
        print(json.dumps(facts, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(f"batch {options.batch}, {SIZE} px, teacher {TEACHER.model} (half width), student {STUDENT.model}")
    print(f"{'step':<14}" + "".join(f"{column:>16}" for column in rows["kd"]) + f"{'n':>5}")
    for name, row in rows.items():
        print(f"{name:<14}" + "".join(f"{value:>16.3f}" for value in row.values()) + f"{options.samples:>5}")


def every_method() -> dict[str, MethodSettings | None]:
    """Return the built-in methods that do not change the student, with their defaults."""
    names = [str(kind.model_fields["name"].annotation.__args__[0]) for kind in BUILT_IN]  # type: ignore[union-attr]
    kinds = dict(zip(names, BUILT_IN, strict=True))
    return {
        name: kind.model_validate({"name": name}) for name, kind in kinds.items() if name != OTHER_STUDENT
    }


def step(settings: MethodSettings | None, device: torch.device, batch: int) -> Callable[[], None]:
    """Create a function that runs a training step, with its own networks, method and optimiser."""
    torch.manual_seed(0)
    method_needs = Needs() if settings is None else needs(settings)
    student, teacher = (
        Observer(create(model, classes=CLASSES, channels=3, image_size=SIZE), method_needs).to(device)
        for model in (STUDENT, TEACHER)
    )
    student.train()
    teacher.eval().requires_grad_(False)
    images = torch.randn(batch, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), device=device)
    indices = torch.randperm(TRAINING_IMAGES, device=device)[:batch]
    student.to(memory_format=torch.channels_last)
    teacher.to(memory_format=torch.channels_last)
    method = None
    if settings is not None:
        method = make(settings, student.spec(SIZE, 3), teacher.spec(SIZE, 3))
        method.prepare(torch.arange(TRAINING_IMAGES) % CLASSES)
        method.to(device)
    parameters = [*student.parameters(), *(method.parameters() if method is not None else ())]
    optimizer = torch.optim.AdamW(parameters)

    def run() -> None:
        optimizer.zero_grad()
        student_features = student(images)
        loss = cross_entropy(student_features.logits, labels)
        if method is not None:
            with torch.no_grad():
                teacher_features = teacher(images)
            context = Batch(labels, indices, ObservedTeacher(teacher, images), student)
            loss = loss + method(student_features, teacher_features, context)
        loss.backward()
        optimizer.step()

    return run


def timed(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return the wall time and the CPU time of this process for a step, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(name: str, wall_ms: dict[str, list[float]], cpu_ms: dict[str, list[float]]) -> dict[str, float]:
    wall = {step: statistics.median(times) for step, times in wall_ms.items()}
    cpu = {step: statistics.median(times) for step, times in cpu_ms.items()}
    return {
        "p50_ms": wall[name],
        "min_ms": min(wall_ms[name]),
        "cpu_p50_ms": cpu[name],
        "wall_to_labels": wall[name] / wall[LABELS_ONLY],
        "wall_to_kd": wall[name] / wall["kd"],
        "cpu_to_kd": cpu[name] / cpu["kd"],
    }


def machine(device: torch.device) -> dict[str, str]:
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [
            line for line in information.read_text(encoding="utf-8").splitlines() if "model name" in line
        ]
        name = lines[0].partition(":")[2].strip() if lines else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
    }


if __name__ == "__main__":
    main()
