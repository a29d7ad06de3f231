"""The profile: everything a user may say, in one typed model. Light: imports pydantic alone."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model, model_validator

from stages.data.settings import (
    DataSettings,
    DigitsSettings,
    IdxSettings,
    ImageFolderSettings,
    NpzSettings,
    TorchvisionSettings,
)
from stages.devices.settings import DEVICE_NAME, DeviceSettings
from stages.fields import BrokenRules, Settings, setting
from stages.gating.settings import GateSettings, broken_rules
from stages.measuring.settings import MeasureSettings
from stages.methods.settings import BUILT_IN as METHODS
from stages.methods.settings import MethodSettings
from stages.models.settings import ModelSettings
from stages.quantisation_aware.settings import QuantisationAwareSettings
from stages.runtimes.settings import ENGINES, BuildSettings, TargetSettings
from stages.training.settings import ComputeSettings, RecipeSettings, TrainSettings

DATA_KINDS: tuple[type[DataSettings], ...] = (
    DigitsSettings,
    IdxSettings,
    NpzSettings,
    ImageFolderSettings,
    TorchvisionSettings,
)


METHODS_HELP = "distillation losses, added by weight; an empty list trains the student alone"


class DistillSettings(RecipeSettings):
    """The student's recipe and the methods that bring the teacher in."""

    methods: list[Any] = setting(lambda: [{"name": "msdcrd"}], METHODS_HELP)
    seed: int | None = setting(
        None, "of the student's first weights, views and order of images; null: the profile's", ge=0, lt=2**31
    )
    label_weight: float = setting(1.0, "weight of the cross-entropy with the true labels", ge=0.0)
    baseline: bool = setting(
        False, "train the same student alone under the same recipe, to tell what distillation gave"
    )

    @model_validator(mode="after")
    def _baseline_has_another(self) -> DistillSettings:
        if self.baseline and not self.methods:
            raise ValueError("methods is empty: the student is alone already, set baseline to false")
        return self


class EvaluateSettings(Settings):
    """How teacher and student are judged on the test images."""

    batch_size: int = setting(256, "images a step; does not change the result", unit="images", ge=1)
    ece_bins: int = setting(15, "equal-width confidence bins of the calibration error", unit="bins", ge=2)


class ExportSettings(Settings):
    """How networks become ONNX files."""

    opset: int = setting(20, "ONNX operator set", ge=18, le=23)
    preprocessing: bool = setting(
        True,
        "put scale, mean and std into the graph: uint8 NHWC images in, logits and probabilities out",
    )
    batch_max: int = setting(1024, "largest batch the dynamic dimension declares", unit="images", ge=2)
    parity_images: int = setting(64, "real test images compared with PyTorch", unit="images", ge=8)
    tolerance: float = setting(
        1e-3,
        "largest logit difference from PyTorch, as a share of the logits' standard deviation",
        gt=0.0,
    )
    agreement: float = setting(
        95.0,
        "least share of these images with PyTorch's class; one image may differ",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    prove: bool = setting(True, "false: a proof that fails is noted, and the files are written all the same")


class QuantizeSettings(Settings):
    """How INT8 files are calibrated."""

    images: int = setting(
        256, "training images used for calibration, spread over the classes", unit="images", ge=8
    )
    method: Literal["auto", "minmax", "moving_average", "percentile", "entropy"] = setting(
        "auto", "how activation ranges are found; auto: all ways are tried, and the best one is taken"
    )
    percentile: float = setting(
        99.99, "share of the values inside the range, for method percentile", gt=50.0, le=100.0
    )
    per_channel: bool = setting(True, "one weight scale an output channel")
    exclude: list[str] = setting(list, "names of ONNX nodes left in float (shell wildcards)")
    holdout: int = setting(
        256,
        "further training images, not calibrated with, on which methods and float layers are chosen",
        unit="images",
        ge=8,
    )
    budget_points: float = setting(
        1.0,
        "top-1 that an INT8 file may lose against the float file on the validation images",
        unit="points",
        ge=0.0,
        le=100.0,
    )
    goal_agreement: float = setting(
        98.0,
        "share of the held-out images with the float file's class below which layers are left in float",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    sensitivity: Literal["missed", "always", "never"] = setting(
        "missed",
        "how much each layer hurts is measured: missed: for a file outside budget_points or goal_agreement",
    )
    sensitivity_images: int = setting(
        64, "held-out images that each layer is measured on", unit="images", ge=8
    )
    max_float_share: float = setting(
        0.3, "share of the multiply-accumulates that may be left in float for accuracy", ge=0.0, le=1.0
    )
    agreement: float = setting(
        50.0,
        "least share of the validation images with the float file's class; below it the stage fails",
        unit="%",
        ge=0.0,
        le=100.0,
    )
    prove: bool = setting(True, "false: a proof that fails is noted, and the files are written all the same")
    distill: QuantisationAwareSettings = setting(
        QuantisationAwareSettings, "a short fine-tune of the student under the rounding of its INT8 file"
    )


class PackageSettings(Settings):
    """What goes into the bundle."""

    targets: list[str] | None = setting(None, "target names to pack; null: every built one")
    level: int = setting(10, "zstd compression level of the archive", ge=1, le=22)


class ReportSettings(Settings):
    """The HTML page."""

    title: str | None = setting(None, "headline; null: the profile's name")


class ProfileBase(Settings):
    """A kdpipe profile: data, teacher, student, and what to do with them."""

    name: str = setting(
        "profile",
        "shown in reports and in the bundle's name",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    seed: int = setting(0, "of initial weights, augmentation and order of images", ge=0, lt=2**31)
    compute: ComputeSettings = setting(ComputeSettings, "where and how the networks are computed")
    data: DataSettings = setting(..., "the images")
    teacher: ModelSettings = setting(..., "the big accurate network")
    student: ModelSettings = setting(..., "the compact network")
    train: TrainSettings = setting(TrainSettings, "the teacher's recipe")
    distill: DistillSettings = setting(DistillSettings, "the student's recipe and methods")
    evaluate: EvaluateSettings = setting(EvaluateSettings, "judging on the test images")
    export: ExportSettings = setting(ExportSettings, "to ONNX")
    quantize: QuantizeSettings = setting(QuantizeSettings, "to INT8")
    targets: list[TargetSettings] = setting(
        lambda: [TargetSettings(name="onnxruntime-fp32"), TargetSettings(name="onnxruntime-int8")],
        "what to build and measure",
        min_length=1,
    )
    build: BuildSettings = setting(BuildSettings, "compiling the targets")
    measure: MeasureSettings = setting(MeasureSettings, "the latency profile")
    gates: list[GateSettings] = setting(list, "limits on what was measured")
    package: PackageSettings = setting(PackageSettings, "the bundle")
    report: ReportSettings = setting(ReportSettings, "the HTML page")
    devices: dict[str, DeviceSettings] = setting(
        dict, "your own devices by name, for `kdpipe device` and `kdpipe ship`"
    )

    @model_validator(mode="after")
    def _engines_are_tuned_for_what_is_measured(self) -> ProfileBase:
        if self.build.batch_opt is None:
            smallest, _, largest = self.build.batches
            tuned = min(max(self.measure.batch_sizes[0], smallest), largest)
            build = self.build.model_copy(update={"batch_opt": tuned})
            object.__setattr__(self, "build", build)  # a profile is frozen from here on
        return self

    @model_validator(mode="after")
    def _measured_batches_are_no_smaller_than_an_engines(self) -> ProfileBase:
        least = self.build.batch_min
        below = [batch for batch in self.measure.batch_sizes if batch < least]
        engines = [target.name for target in self.targets if target.runtime in ENGINES]
        if below and engines:
            raise ValueError(
                f"build.batch_min {least} is above {', '.join(map(str, below))} of measure.batch_sizes: "
                f"{', '.join(engines)} could not be timed there; set build.batch_min to {min(below)}, "
                f"or measure.batch_sizes to batches of at least {least}"
            )
        return self

    @model_validator(mode="after")
    def _targets_are_distinct(self) -> ProfileBase:
        names = [target.name for target in self.targets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"targets name {', '.join(repeated)} more than once")
        return self

    @model_validator(mode="after")
    def _gates_can_be_judged(self) -> ProfileBase:
        broken = broken_rules(self.gates, [target.name for target in self.targets], self.measure)
        if broken:
            raise BrokenRules(broken)
        return self

    @model_validator(mode="after")
    def _packed_targets_are_built(self) -> ProfileBase:
        names = [target.name for target in self.targets]
        absent = [name for name in self.package.targets or [] if name not in names]
        if absent:
            raise ValueError(
                f"package.targets has {', '.join(absent)}, which targets does not: {', '.join(names)}"
            )
        return self

    @model_validator(mode="after")
    def _device_targets_are_built(self) -> ProfileBase:
        names = [target.name for target in self.targets]
        for device, settings in self.devices.items():
            if not re.fullmatch(DEVICE_NAME, device):
                raise ValueError(
                    f"devices: {device!r} is no name: letters, digits, dots, dashes, underscores"
                )
            absent = [name for name in settings.targets or [] if name not in names]
            if absent:
                raise ValueError(
                    f"devices.{device}.targets has {', '.join(absent)}, which targets does not: "
                    f"{', '.join(names)}"
                )
        return self


@functools.cache
def profile_model(
    more_data: tuple[type[DataSettings], ...] = (),
    more_methods: tuple[type[MethodSettings], ...] = (),
) -> type[ProfileBase]:
    """The profile's model, with the settings classes of plug-ins beside the built-in ones."""
    data = _by_name(DATA_KINDS + more_data)
    methods = _by_name(METHODS + more_methods)
    distill = create_model(
        "DistillSettings",
        __base__=DistillSettings,
        __doc__=DistillSettings.__doc__,
        methods=(
            list[methods],  # type: ignore[valid-type]
            setting(lambda: [{"name": "msdcrd"}], METHODS_HELP),
        ),
    )
    return create_model(
        "Profile",
        __base__=ProfileBase,
        __doc__=ProfileBase.__doc__,
        data=(data, setting(..., "the images")),
        distill=(distill, setting(distill, "the student's recipe and methods")),
    )


def _by_name(kinds: tuple[type[Settings], ...]) -> Any:
    union = Union[kinds]  # type: ignore[valid-type]  # noqa: UP007 - built at run time
    return Annotated[union, Field(discriminator="name")] if len(kinds) > 1 else kinds[0]
