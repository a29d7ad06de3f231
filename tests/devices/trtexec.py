"""A stand-in for `trtexec` of TensorRT 10 or 11: its real command line and the form of what it writes.

An "engine" is the ONNX file that it was built from, run by ONNX Runtime. Words that the version does not
know, batches outside the profile and inputs of another size are refused as the real program refuses them.
Without copies it brings no outputs back: those are zeros, as memory that nothing was copied to.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

STAND_IN = """#!{python}
import math, os, sys, time
VERSION = {version}
ELEVEN = VERSION >= 110000
BUILDING = {{"onnx", "saveEngine", "stronglyTyped", "skipInference", "memPoolSize",
    "builderOptimizationLevel", "minShapes", "optShapes", "maxShapes", "timingCacheFile",
    "refit", "noTF32", "hardwareCompatibilityLevel"}}
RUNNING = {{"loadEngine", "shapes", "loadInputs", "exportTimes", "exportOutput", "warmUp", "duration",
    "iterations", "useSpinWait", "useCudaGraph", "noDataTransfers", "noCudaGraph", "includeDataTransfers"}}
KNOWN = BUILDING | RUNNING
if not ELEVEN:
    KNOWN -= {{"noCudaGraph", "includeDataTransfers"}}
line = " ".join(sys.argv)
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{{VERSION}}] [b35] # {{line}}")
with open({log!r}, "a") as log:
    log.write(line + "\\n")
if sys.argv[1:] == ["--help"]:
    print("=== Inference Options ===")
    for word in sorted(KNOWN):
        print(f"  --{{word}}    ...")
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{{VERSION}}] [b35] # {{line}}")
    sys.exit(0)
def fail(why):
    print(f"[11/20/2026-10:00:00] [E] {{why}}")
    print(f"&&&& FAILED TensorRT.trtexec [TensorRT v{{VERSION}}] [b35] # {{line}}")
    sys.exit(1)
options = {{}}
for word in sys.argv[1:]:
    name, _, value = word.removeprefix("--").partition("=")
    if name not in KNOWN or not word.startswith("--"):
        fail(f"Unknown option: {{word}}")
    options[name] = value
def shape(text):
    name, _, sizes = text.partition(":")
    return name, [int(size) for size in sizes.split("x")]
def passed():
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{{VERSION}}] [b35] # {{line}}")
    sys.exit(0)
if "onnx" in options:
    if {fault!r} == "build":
        fail("Error[10]: IBuilder::buildSerializedNetwork: could not find any implementation for node Conv_0")
    if {fault!r} == "silent":
        passed()
    if "timingCacheFile" in options:
        before = os.path.exists(options["timingCacheFile"])
        print("[I] Loaded timing cache" if before else "[W] Could not read timing cache: it is made anew")
        open(options["timingCacheFile"], "ab").write(b"timings")
    profile = [shape(options[name])[1][0] for name in ("minShapes", "maxShapes")]
    content = open(options["onnx"], "rb").read()
    open(options["saveEngine"], "wb").write(bytes(profile) + content)
    passed()
import numpy as np
import onnxruntime
engine = open(options["loadEngine"], "rb").read()
name, sizes = shape(options["shapes"])
if not engine[0] <= sizes[0] <= engine[1]:
    fail(f"Error[3]: setInputShape: dimension 0 of {{name}} is outside the profile")
session = onnxruntime.InferenceSession(engine[2:], providers=["CPUExecutionProvider"])
kind = {{"tensor(uint8)": np.uint8, "tensor(float)": np.float32}}[session.get_inputs()[0].type]
loaded_name, _, file = options["loadInputs"].partition(":")
raw = open(file, "rb").read()
if loaded_name != name or len(raw) != math.prod(sizes) * np.dtype(kind).itemsize:
    fail("Error: Expected: %d bytes, got %d bytes in input file" % (math.prod(sizes), len(raw)))
images = np.frombuffer(raw, kind).reshape(sizes)
graphs = ("noCudaGraph" not in options) if ELEVEN else ("useCudaGraph" in options)
copies = ("includeDataTransfers" in options) if ELEVEN else ("noDataTransfers" not in options)
print(f"[I] CUDA Graph: {{'Enabled' if graphs else 'Disabled'}}")
names = [output.name for output in session.get_outputs()]
until = time.perf_counter() + float(options["duration"])
times = []
while len(times) < int(options["iterations"]) or time.perf_counter() < until:
    begun = time.perf_counter()
    outputs = session.run(None, {{name: images}})
    took = (time.perf_counter() - begun) * 1e3
    times.append((begun * 1e3, took))
    if len(times) >= 2000:
        break
if "exportTimes" in options:
    with open(options["exportTimes"], "w") as out:
        out.write("[\\n")
        separator = "  "
        for begun, took in times:
            inwards, outwards = (0.25, 0.125) if copies else (0.0, 0.0)
            fields = {{"startEnqMs": begun, "endEnqMs": begun, "startH2dMs": begun, "endH2dMs": begun,
                "startComputeMs": begun, "endComputeMs": begun + took, "startD2hMs": begun,
                "endD2hMs": begun, "h2dMs": inwards, "computeMs": took, "d2hMs": outwards,
                "latencyMs": inwards + took + outwards}}
            text = ", ".join(f'"{{name}}" : {{value:g}}' for name, value in fields.items())
            out.write(separator + "{{ " + text + " }}\\n")
            separator = ", "
        out.write("]\\n")
if "exportOutput" in options:
    with open(options["exportOutput"], "w") as out:
        out.write("[\\n")
        separator = "  "
        for name, values in zip(names, outputs):
            values = values if copies else np.zeros_like(values)
            if {fault!r} == "nan":
                values = values * np.nan
            out.write(f'{{separator}}{{{{ "name" : "{{name}}"\\n')
            out.write('  , "dimensions" : "' + "x".join(map(str, values.shape)) + '"\\n')
            numbers = ", ".join("%g" % value for value in values.ravel())
            out.write(f'  , "values" : [ {{numbers}} ]\\n  }}}}\\n')
            separator = ", "
        out.write("]\\n")
passed()
"""


def stand_in(folder: Path, version: int, fault: str = "") -> Path:
    """A folder for the PATH that holds `trtexec`; its command lines are kept in `commands.txt` there.

    version: like in its banner, e.g. 101300. fault: `build` (it fails), `silent` (it passes and leaves no
    engine), `nan` (the outputs are not numbers).
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "trtexec"
    text = STAND_IN.format(
        python=sys.executable, version=version, log=str(folder / "commands.txt"), fault=fault
    )
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder
