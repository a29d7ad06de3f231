"""Measure the accuracy that quantization-aware distillation recovers, on test images that no choice used.

    python benchmarks/bench_quantization_aware.py DATA TEACHER --store DIR [--seeds 0 1] [--json]

DATA contains CIFAR-10's `train.npz` and `test.npz` (docs/guides/data.md; benchmarks/convert_cifar.py makes
them). TEACHER is a file of weights for `cifar_resnet20` with padded shortcuts. The program distills a
MobileNetV3-small-050 at 64 pixels on half of the images, and quantizes it coarsely on purpose (signed,
extremes as ranges, one weight scale a layer, nothing left in float), without and with the fine-tune. It uses
kdpipe's command line, and the artefacts stay in the store: a second call only evaluates. For each seed of the
student's training it prints top-1 of the float file, the INT8 file and the fine-tuned INT8 file, all run node
by node, with the 95 % paired bootstrap intervals of their differences.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from stages.data.load import Split, load
from stages.onnx_files.quantized_proof import paired_accuracy
from stages.onnx_files.sessions import open_session, run_logits
from stages.settings import profile_model

FILE = "student.int8.signed.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("teacher", type=Path, help="weights of the teacher, .safetensors")
    parser.add_argument("--store", type=Path, required=True, help="kdpipe's store")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    options = parser.parse_args()
    profile = profile_of(options.data, options.teacher)
    test = load(profile_model()(**profile).data).test
    rows = [row_of(seed, profile, options.store, test) for seed in options.seeds]
    result = {"machine": machine(), "images": len(test), "rows": rows}
    print(json.dumps(result, indent=2) if options.json else table(result))


def profile_of(data: Path, teacher: Path) -> dict[str, Any]:
    return {
        "name": "quantization_aware",
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
        "data": {"name": "npz", "root": str(data.resolve()), "image_size": 64},
        "teacher": {
            "model": "cifar_resnet20",
            "options": {"shortcut": "pad"},
            "checkpoint": str(teacher.resolve()),
            "image_size": 32,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "student": {"model": "mobilenetv3_small_050"},
        "train": {"epochs": 0},
        "distill": {
            "epochs": 8,
            "fraction": 0.5,
            "batch_size": 128,
            "learning_rate": 0.004,
            "weight_decay": 0.02,
            "warmup_epochs": 1,
            "methods": [{"name": "kd"}],
        },
        "quantize": {
            "method": "minmax",
            "per_channel": False,
            "sensitivity": "never",
        },
        "targets": ["openvino-int8"],
    }


def row_of(seed: int, profile: dict[str, Any], store: Path, test: Split) -> dict[str, Any]:
    """Evaluate the three files of a student on the test images."""
    # The first student has the profile's own seed.
    overrides = ["--set", f"distill.seed={seed}"] if seed else []
    before = artefacts(profile, store, [*overrides, "--set", "quantize.distill.when=never"])
    after = artefacts(profile, store, [*overrides, "--set", "quantize.distill.when=always"])
    facts = json.loads((after["quantize"] / "calibration.json").read_text(encoding="utf-8"))
    card = json.loads((before["export"] / "student.json").read_text(encoding="utf-8"))
    logits = {
        "float": logits_of(before["export"] / "student.onnx", test, card),
        "int8": logits_of(before["quantize"] / FILE, test, card),
        "fine_tuned": logits_of(after["quantize"] / FILE, test, card),
    }
    top1 = {
        name: 100.0 * float((values.argmax(axis=1) == test.labels).mean()) for name, values in logits.items()
    }
    return {
        "seed": seed,
        "top1": top1,
        "int8_minus_float": paired_accuracy(logits["int8"], logits["float"], test.labels),
        "fine_tuned_minus_float": paired_accuracy(logits["fine_tuned"], logits["float"], test.labels),
        "fine_tuned_minus_int8": paired_accuracy(logits["fine_tuned"], logits["int8"], test.labels),
        "recovered_share": (top1["fine_tuned"] - top1["int8"]) / (top1["float"] - top1["int8"]),
        "validation": facts["files"]["signed"]["quantization_aware"],
    }


def artefacts(profile: dict[str, Any], store: Path, more: list[str]) -> dict[str, Path]:
    """Run `kdpipe quantize --json` and return the folder of every stage's artefact."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantization_aware.yaml"
        file.write_text(json.dumps(profile), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "pipeline", "quantize", str(file), "--store", str(store), "--json"]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run([*command, *more], stdout=subprocess.PIPE, text=True, check=True, cwd=root)
    return {
        stage["name"]: Path(stage["path"]) for stage in json.loads(done.stdout)["stages"] if stage["path"]
    }


def logits_of(file: Path, test: Split, card: dict[str, Any]) -> np.ndarray:
    session = open_session(file, optimise=False)
    return run_logits(session, test.images, np.arange(len(test)), card)


def machine() -> dict[str, Any]:
    packages = ("torch", "timm", "onnx", "onnxruntime")
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()),
        f"{result['images']} test images; differences in points of top-1, 95 % paired bootstrap",
        f"{'seed':>4} {'float':>7} {'INT8':>7} {'tuned':>7} {'INT8 - float':>24} {'tuned - INT8':>24} "
        f"{'tuned - float':>24} {'recovered':>9}",
    ]
    for row in result["rows"]:
        top1 = row["top1"]
        lines.append(
            f"{row['seed']:>4} {top1['float']:>7.2f} {top1['int8']:>7.2f} {top1['fine_tuned']:>7.2f} "
            f"{points(row['int8_minus_float'])} {points(row['fine_tuned_minus_int8'])} "
            f"{points(row['fine_tuned_minus_float'])} {row['recovered_share']:>9.0%}"
        )
    return "\n".join(lines)


def points(difference: dict[str, Any]) -> str:
    low, high = difference["ci"]
    return f"{difference['points']:+7.2f} [{low:+6.2f},{high:+6.2f}]".rjust(24)


if __name__ == "__main__":
    main()
