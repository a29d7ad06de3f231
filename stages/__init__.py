"""The table of the stages, in order, for the engine.

Importing it imports no stage and nothing heavy.
"""

from __future__ import annotations

from pipeline.stage import Conditional, Stage

NETWORKS = ("torch", "torchvision", "timm", "pillow")
"""Distributions that affect what a network computes: kernels, architectures, decoding of images. Not listed
are Lightning Fabric, which only calls PyTorch, and NumPy, which at most gives another order of the images."""

ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")
"""Each of them contains the module `onnxruntime`."""

STAGES: tuple[Stage, ...] = (
    Stage(
        name="train",
        summary="Train the teacher, or load a trained one.",
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
        summary="Distill the teacher into the student.",
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
        summary="Evaluate teacher and student on the test images.",
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
        summary="Export teacher and student to ONNX, and check that they agree with PyTorch.",
        module="stages.export",
        version=1,
        inputs=("train", "distill"),
        reads=("data", "export"),
        data=True,
        libraries=("torch", "timm", "torchvision", "onnx", "onnxscript", "onnx-ir", *ONNX_RUNTIME),
    ),
    Stage(
        name="quantize",
        summary="Quantize the student to INT8, with one recipe for each family of targets.",
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
        summary="Measure accuracy, latency, memory and size of the files that ship.",
        module="stages.measure",
        version=8,
        inputs=("build", "evaluate"),
        reads=("data", "measure"),
        data=True,
        files=("measure.reference",),
        machine="pipeline.machine:identity",
    ),
    Stage(
        name="gate",
        summary="Check the measurements against the profile's limits, and pick the target to ship.",
        module="stages.gate",
        version=3,
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
        summary="Write the report: one self-contained HTML page, a summary and a model card.",
        module="stages.report",
        version=7,
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
        reads_history=True,
    ),
)
"""The stages; each comes after the stages that it reads."""

COMPARE = Stage(
    name="compare",
    summary="Compare each method's gain over plain training, with confidence intervals.",
    module="stages.compare",
    version=2,
    inputs=("train", "distill"),
    reads=("compute", "data", "evaluate"),
    data=True,
    libraries=NETWORKS,
    patch_releases=False,
)
"""The stage of `kdpipe compare`, for many runs of `distill`; no run of a profile contains it."""

DEBUG_LINE = "stages.debugging.line:debug_line"
"""The function that examines every conversion of a profile's artefacts, for `kdpipe debug`."""

DEBUG_PAIR = "stages.debugging.pair:debug_pair"
"""The function that compares two ONNX files, for `kdpipe debug --onnx`."""

UNPROVED = ("export.prove=false", "quantize.prove=false", "build.prove=false")
"""The overrides for `kdpipe debug`: it examines conversions although their proofs fail."""

DEVICE = Stage(
    name="device",
    summary="Compute the scorecard of a device from the samples that were taken there.",
    module="stages.device",
    version=5,
    inputs=("evaluate", "export", "quantize", "measure", "package"),
    reads=("build", "measure"),
    data=True,
)
"""The stage of `kdpipe device measure`; no run of a profile contains it."""

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
"""The function that returns the bytes of the program for devices."""

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
"""The function that picks the target to ship, for devices that were measured."""

JUDGE_THERE = "stages.gating.on_devices:judge_there"
"""The function that judges gates on what was measured on a device."""

METHODS_FIT = "stages.comparing.fit:why_unfit"
"""The function that returns why methods cannot be used with a profile's two networks, for `kdpipe
compare`."""

PROFILE_SETTINGS = "stages.settings:profile_model"
"""The function that builds the profile's typed model."""

DATA_FINGERPRINT = "stages.data.fingerprint:fingerprint"
"""The light function that returns the fingerprint of a data set's content, without reading images."""

TRIAL = "stages.runtimes.trial"
"""The module that `kdpipe doctor` runs in child processes, to try what works on this machine."""
