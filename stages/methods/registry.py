"""From a profile's settings to distillation losses, for built-in methods and plug-ins alike.

A settings class names the class of its method ("module:Class"). This module is the only place where
settings become keyword arguments. It does not import torch before a method is needed.
(Plug-ins register their settings classes with entry points of the group `kdpipe.methods`;
docs/reference/methods.md has an example.)
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import plugins
from pipeline.errors import ModelError
from stages.methods.settings.base import MethodSettings

if TYPE_CHECKING:
    from torch import nn

    from stages.methods.base import Method
    from stages.models.features import FeatureSpec, Needs

Result = TypeVar("Result")


def arguments_of(settings: MethodSettings) -> dict[str, Any]:
    """Collect the keyword arguments of a method from its settings.

    Args:
        settings: The settings of one method.

    Returns:
        Every field of the settings class by name, without `name` and the fields that all methods share
        (`weight`, `warmup_epochs`).
    """
    shared = {"name", *MethodSettings.model_fields}
    return {key: getattr(settings, key) for key in type(settings).model_fields if key not in shared}


def make(settings: MethodSettings, student: FeatureSpec, teacher: FeatureSpec) -> Method:
    """Create the method of these settings for two networks.

    Args:
        settings: The settings of one method.
        student: The student's shapes.
        teacher: The teacher's shapes.

    Returns:
        The loss.

    Raises:
        ModelError: The networks do not provide what the method needs, its class cannot be imported, or
            its constructor does not take the fields of its settings class.
    """
    return _call(method_class(settings), settings, student, teacher)


def needs(settings: MethodSettings) -> Needs:
    """List the maps that a method reads, before the networks exist.

    Args:
        settings: The settings of one method.

    Returns:
        The maps to observe in both networks (`Method.needs`).

    Raises:
        ModelError: The method's class cannot be imported or does not take its settings.
    """
    return _call(method_class(settings).needs, settings)


def build_student(
    methods: Sequence[MethodSettings],
    student: nn.Module,
    teacher: nn.Module,
    *,
    image_sizes: tuple[int, int],
    channels: int,
) -> nn.Module:
    """Build the network that these methods train and deploy instead of the student.

    Args:
        methods: The settings of the profile's methods.
        student: The profile's student with its initial weights.
        teacher: The trained teacher.
        image_sizes: The sides of the student's and of the teacher's images, in pixels.
        channels: Channels of the images.

    Returns:
        The student, or the network that a method builds from it (`Method.build_student`).

    Raises:
        ModelError: A method cannot use these networks, or a model card cannot describe the result.
    """
    from stages.models.borrowed import BorrowedHead

    network = student
    for settings in methods:
        network = _call(
            method_class(settings).build_student,
            settings,
            network,
            teacher,
            image_sizes=image_sizes,
            image_channels=channels,
        )
        if network is not student and not isinstance(network, BorrowedHead):
            raise ModelError(
                f"{type(settings).method} builds a student that no card can describe",
                why=f"it is a {type(network).__name__}",
                hint="return the student itself, or a stages.models.borrowed.BorrowedHead",
            )
    return network


def builds_student(methods: Sequence[MethodSettings]) -> bool:
    """Check whether a method trains and deploys another network than the profile's student.

    Args:
        methods: The settings of the profile's methods.

    Returns:
        Whether one of them overrides `Method.build_student`.
    """
    from stages.methods.base import Method

    default = Method.build_student.__func__  # type: ignore[attr-defined]
    return any(
        method_class(settings).build_student.__func__ is not default  # type: ignore[attr-defined]
        for settings in methods
    )


def check_student(
    methods: Sequence[MethodSettings], student: nn.Module, *, image_size: int, channels: int
) -> None:
    """Check whether `build_student` can use a student with any teacher.

    Args:
        methods: The settings of the profile's methods.
        student: The profile's student with random weights; it is not changed.
        image_size: The side of the student's images, in pixels.
        channels: Channels of the images.

    Raises:
        ModelError: A method cannot use this student.
    """
    for settings in methods:
        # Each method gets a copy, because it may change the student's modules.
        _call(
            method_class(settings).check_student,
            settings,
            copy.deepcopy(student),
            image_size=image_size,
            image_channels=channels,
        )


def method_class(settings: MethodSettings) -> type[Method]:
    """Import the class that a settings class names in `method: "module:Class"`.

    Args:
        settings: The settings of one method.

    Returns:
        The subclass of `Method`.

    Raises:
        ModelError: The name is missing, cannot be imported, or is not a method.
    """
    from stages.methods.base import Method

    kind = type(settings)
    where = f"{kind.__module__}:{kind.__qualname__}"
    target = getattr(kind, "method", "")
    module, _, name = target.partition(":")
    if not module or not name:
        raise ModelError(
            "a settings class has no method",
            where=where,
            why=f"its `method` is {target!r}; expected 'module:Class'",
            hint='give the class the attribute `method: ClassVar[str] = "module:Class"`',
        )
    try:
        imported = plugins.imported(target)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"the method {target} cannot be imported",
            where=where,
            why=f"{type(error).__name__}: {error}",
            hint="correct the `method` attribute, or install what the plug-in needs",
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, Method)):
        raise ModelError(
            f"{target} is not a method", where=where, why="expected a subclass of stages.methods.base.Method"
        )
    return imported


def warmup_factor(settings: MethodSettings, epoch_progress: float) -> float:
    """Compute the current share of a method's weight, which rises linearly over `warmup_epochs`.

    Args:
        settings: The settings of one method.
        epoch_progress: Completed epochs, including the fraction of the current one (0.0 at the first
            step).

    Returns:
        A factor from 0 to 1.
    """
    if settings.warmup_epochs <= 0.0:
        return 1.0
    return min(1.0, max(0.0, epoch_progress) / settings.warmup_epochs)


def _call(
    function: Callable[..., Result], settings: MethodSettings, *positional: object, **keywords: object
) -> Result:
    """Call a constructor or a classmethod of a method with its settings as keyword arguments."""
    arguments = arguments_of(settings)
    try:
        inspect.signature(function).bind(*positional, **keywords, **arguments)
    except TypeError as error:
        raise ModelError(
            f"{type(settings).method} does not take the fields of its settings class",
            where=f"{function.__module__}.{function.__qualname__}",
            why=str(error),
            hint="give it one keyword argument for each field of the settings class, with the same name "
            "(docs/reference/methods.md)",
        ) from error
    return function(*positional, **keywords, **arguments)
