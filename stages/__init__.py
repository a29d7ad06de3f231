"""The stages, in order: the one table through which the engine knows them.

Light: importing it imports no stage and nothing heavy.
"""

from __future__ import annotations

from pipeline.stage import Conditional, Stage

NETWORKS = ("torch", "torchvision", "timm", "pillow")
"""Distributions that decide what a network computes: kernels, architectures, decoding of images. Lightning
Fabric only passes on what PyTorch does, and another NumPy at most draws another order of the images."""

ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")
"""Either brings the module `onnxruntime`."""

STAGES: tuple[Stage, ...] = (
    Stage(
        name="train",
        summary="Train the teacher, or load it.",
        module="stages.train",
        version=1,
        inputs=(),
        reads=("seed", "compute", "data", "teacher", "train"),
        data=True,
        files=("teacher.checkpoint",),
        libraries=NETWORKS,
        patch_releases=False,
    ),
    Stage(
        name="distill",
        summary="Distil the student from the teacher.",
        module="stages.distill",
        version=1,
        inputs=("train",),
        reads=("seed", "compute", "data", "student", "distill"),
        data=True,
        files=("student.checkpoint",),
        libraries=NETWORKS,
        patch_releases=False,
    ),
    Stage(
        name="evaluate",
        summary="Judge teacher and student on the test images.",
        module="stages.evaluate",
        version=1,
        inputs=("train", "distill"),
        reads=("compute", "data", "evaluate"),
        data=True,
        libraries=NETWORKS,
        patch_releases=False,
    ),
    Stage(
        name="export",
        summary="Export teacher and student to ONNX and prove that they agree with PyTorch.",
        module="stages.export",
        version=1,
        inputs=("train", "distill"),
        reads=("data", "export"),
        data=True,
        libraries=("torch", "timm", "torchvision", "onnx", "onnxscript", "onnx-ir", *ONNX_RUNTIME),
    ),
    Stage(
        name="quantize",
        summary="Quantize the student's ONNX file to INT8, one recipe for each family of targets.",
        module="stages.quantize",
        version=4,
        inputs=("train", "distill", "export"),
        reads=("data", "quantize", "targets"),
        data=True,
        libraries=("onnx", *ONNX_RUNTIME, "pillow"),
        conditional=Conditional(
            condition="stages.quantization_aware.condition:may_run",
            reads=("seed", "compute", "distill"),
            libraries=("torch", "torchvision", "timm", "onnxscript", "onnx-ir"),
        ),
    ),
    Stage(
        name="build",
        summary="Build every target for its runtime.",
        module="stages.build",
        version=5,
        inputs=("export", "quantize"),
        reads=("targets", "build"),
        machine="stages.runtimes.identity:build_machine",
    ),
    Stage(
        name="measure",
        summary="Measure accuracy, latency, memory and size of the very files that ship.",
        module="stages.measure",
        version=7,
        inputs=("build", "evaluate"),
        reads=("data", "measure"),
        data=True,
        files=("measure.reference",),
        machine="pipeline.machine:identity",
    ),
    Stage(
        name="gate",
        summary="Judge the profile's limits on what was measured, and name the target to ship.",
        module="stages.gate",
        version=2,
        inputs=("evaluate", "measure"),
        reads=("gates",),
    ),
    Stage(
        name="package",
        summary="Pack a bundle that runs on a device without kdpipe.",
        module="stages.package",
        version=5,
        inputs=("build", "measure", "gate"),
        reads=("name", "package"),
    ),
    Stage(
        name="report",
        summary="Write the report: one self-contained HTML page.",
        module="stages.report",
        version=6,
        inputs=(
            "train",
            "distill",
            "evaluate",
            "export",
            "quantize",
            "build",
            "measure",
            "gate",
            "package",
        ),
        reads=("name", "report"),
        tells_history=True,
    ),
)
"""Every stage after the stages it reads."""

COMPARE = Stage(
    name="compare",
    summary="Say what each method gained on the student alone, and how sure that is.",
    module="stages.compare",
    version=1,
    inputs=("train", "distill"),
    reads=("compute", "data", "evaluate"),
    data=True,
    libraries=NETWORKS,
    patch_releases=False,
)
"""What `kdpipe compare` makes of many runs of `distill`; no part of the line, so not in STAGES."""

DEBUG_LINE = "stages.debugging.line:debug_line"
"""The function that looks into every conversion of a profile's artefacts, for `kdpipe debug`."""

DEBUG_PAIR = "stages.debugging.pair:debug_pair"
"""The function that looks into two ONNX files, for `kdpipe debug --onnx`."""

UNPROVED = ("export.prove=false", "quantize.prove=false", "build.prove=false")
"""What `--set` says for conversions that are to be looked into although their proofs fail."""

DEVICE = Stage(
    name="device",
    summary="The scorecard of a device, from the samples that were taken there.",
    module="stages.device",
    version=4,
    inputs=("evaluate", "export", "quantize", "measure", "package"),
    reads=("build", "measure"),
    data=True,
)
"""What `kdpipe device measure` makes; no part of the line, so not in STAGES."""

REPORTED_DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ncnn",
    "pnnx",
    "tensorrt",
    "tensorrt-rtx",
    "pydantic",
    "click",
)
"""Python distributions whose versions `kdpipe doctor` reports."""

PACKAGE_CONFLICTS = "stages.runtimes.identity:package_conflicts"
"""The light function that names installed packages that do not go together, for `kdpipe doctor`."""

DEVICE_PROGRAM = "stages.devices.program:program"
"""The function that gives the bytes of the program that works on a device."""

DEVICE_REQUEST = "stages.devices.requests:measuring_request"
"""The light function that writes the request to measure one target on a device."""

BUILT_ON_DEVICES = "stages.devices.requests:is_built_there"
"""The light function that decides whether a device builds a target's file itself."""

DEVICE_ABILITIES = "stages.devices.abilities:why_unable"
"""The light function that returns, by target, why a device cannot measure it, from the device's facts."""

DEVICE_KEY_FACTS = "stages.devices.abilities:key_facts"
"""The light function that selects the facts of a device that its figures depend on."""

DEVICE_LASTING_FACTS = "stages.devices.abilities:lasting_facts"
"""The light function that selects the facts of a device that do not change from minute to minute."""

DEVICE_SOFTWARE = "stages.devices.abilities:software_rows"
"""The light function that returns the rows about runtimes in the table of `kdpipe device check`."""

DEVICE_SOURCES = "stages.devices.sources:prepare"
"""The function that writes the ONNX files from which a device builds its engines."""

DEVICE_IMAGES = "stages.devices.images:write"
"""The function that writes the test images that are sent to a device."""

PICK = "stages.gating.picking:pick"
"""The function that names the target to ship, for devices that were measured."""

JUDGE_THERE = "stages.gating.on_devices:judge_there"
"""The function that judges gates on what was measured on a device."""

METHODS_FIT = "stages.comparing.fit:why_unfit"
"""The function that says why methods cannot be used with a profile's two networks, for `kdpipe compare`."""

PROFILE_SETTINGS = "stages.settings:profile_model"
"""The function that makes the profile's typed model, named so that it is imported when needed."""

DATA_FINGERPRINT = "stages.data.fingerprint:fingerprint"
"""The light function that tells a data set by its content, without reading images."""

TRIAL = "stages.runtimes.trial"
"""The module that `kdpipe doctor` runs in processes of its own, to try what this machine can do."""
