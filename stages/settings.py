"""The profile as one typed model. Light: imports only pydantic."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Union

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
from stages.onnx_files.settings import ExportSettings
from stages.quantizing.settings import QuantizeSettings
from stages.reporting.settings import PackageSettings, ReportSettings
from stages.runtimes.settings import ENGINES, BuildSettings, TargetSettings
from stages.training.settings import METHODS_HELP, ComputeSettings, DistillSettings, TrainSettings

DATA_KINDS: tuple[type[DataSettings], ...] = (
    DigitsSettings,
    IdxSettings,
    NpzSettings,
    ImageFolderSettings,
    TorchvisionSettings,
)


class EvaluateSettings(Settings):
    """How teacher and student are evaluated on the test images."""

    batch_size: int = setting(256, "images per step; does not change the result", unit="images", ge=1)
    ece_bins: int = setting(15, "equal-width confidence bins of the calibration error", unit="bins", ge=2)


class ProfileBase(Settings):
    """A kdpipe profile: data, teacher, student, and the settings of every stage."""

    name: str = setting(
        "profile",
        "name of the bundle, and title of the report",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    seed: int = setting(0, "seed of initial weights, augmentation and order of images", ge=0, lt=2**31)
    compute: ComputeSettings = setting(ComputeSettings, "device, precision and threads for the networks")
    data: DataSettings = setting(..., "the images")
    teacher: ModelSettings = setting(..., "the large, accurate network")
    student: ModelSettings = setting(..., "the compact network")
    train: TrainSettings = setting(TrainSettings, "training of the teacher")
    distill: DistillSettings = setting(
        DistillSettings, "training of the student, and the distillation methods"
    )
    evaluate: EvaluateSettings = setting(EvaluateSettings, "evaluation on the test images")
    export: ExportSettings = setting(ExportSettings, "export to ONNX")
    quantize: QuantizeSettings = setting(QuantizeSettings, "quantization to INT8")
    targets: list[TargetSettings] = setting(
        lambda: [TargetSettings(name="onnxruntime-fp32"), TargetSettings(name="onnxruntime-int8")],
        "the targets to build and measure",
        min_length=1,
    )
    build: BuildSettings = setting(BuildSettings, "compilation of the targets")
    measure: MeasureSettings = setting(MeasureSettings, "measurement of latency and accuracy")
    gates: list[GateSettings] = setting(list, "limits on the measured figures")
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
            object.__setattr__(self, "build", build)  # the profile is frozen after validation
        return self

    @model_validator(mode="after")
    def _measured_batches_are_no_smaller_than_an_engines(self) -> ProfileBase:
        least = self.build.batch_min
        below = [batch for batch in self.measure.batch_sizes if batch < least]
        engines = [target.name for target in self.targets if target.runtime in ENGINES]
        if below and engines:
            raise ValueError(
                f"build.batch_min {least} is above {', '.join(map(str, below))} of measure.batch_sizes: "
                f"{', '.join(engines)} cannot run these; set build.batch_min to {min(below)}, "
                f"or measure.batch_sizes to batches of at least {least}"
            )
        return self

    @model_validator(mode="after")
    def _targets_are_distinct(self) -> ProfileBase:
        names = [target.name for target in self.targets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"targets has {', '.join(repeated)} more than once")
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
                    f"devices: {device!r} is not a valid name: use letters, digits, dots, dashes, underscores"
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
    """Return the profile's model, with the settings classes of plug-ins beside the built-in ones.

    Args:
        more_data: Settings classes of further data sets.
        more_methods: Settings classes of further distillation methods.

    Example:
        >>> profile_model().__name__
        'Profile'
    """
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
        distill=(distill, setting(distill, "training of the student, and the distillation methods")),
    )


def _by_name(kinds: tuple[type[Settings], ...]) -> Any:
    union = Union[kinds]  # type: ignore[valid-type]  # noqa: UP007 - built at run time
    return Annotated[union, Field(discriminator="name")] if len(kinds) > 1 else kinds[0]
