"""Which class computes which method: what its settings class names, built-in or a plug-in's alike.

Light: imports no torch before a method is made. (Plug-ins' settings classes come to the profile
through entry points of the group `kdpipe.methods`; docs/reference/methods.md has an example.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import plugins
from pipeline.errors import ModelError
from stages.methods.settings.base import MethodSettings

if TYPE_CHECKING:
    from torch import nn

    from stages.methods.base import Method
    from stages.models.features import FeatureSpec, Needs


def make(settings: MethodSettings, student: FeatureSpec, teacher: FeatureSpec) -> Method:
    """The method of these settings for these two networks.

    Raises ModelError if the networks do not show what it needs, or its class cannot be imported.
    """
    return method_class(settings)(settings, student, teacher)


def needs(settings: MethodSettings) -> Needs:
    """The maps that the method reads (see `Method.needs`), known before the networks are."""
    return method_class(settings).needs(settings)


def build_student(
    methods: Sequence[MethodSettings],
    student: nn.Module,
    teacher: nn.Module,
    *,
    image_sizes: tuple[int, int],
    channels: int,
) -> nn.Module:
    """The network that these methods train and leave in the student's place (`Method.build_student`).

    Raises ModelError if it cannot be made, or could not be built again from its card.
    """
    from stages.models.borrowed import BorrowedHead

    built = student
    for one in methods:
        built = method_class(one).build_student(
            one, built, teacher, image_sizes=image_sizes, channels=channels
        )
        if built is not student and not isinstance(built, BorrowedHead):
            raise ModelError(
                f"{type(one).method} builds a student that no card can describe",
                why=f"it is a {type(built).__name__}",
                hint="return the student itself, or a stages.models.borrowed.BorrowedHead",
            )
    return built


def builds_student(methods: Sequence[MethodSettings]) -> bool:
    """Whether one of them trains and leaves another network than the profile's student."""
    from stages.methods.base import Method

    own = Method.build_student.__func__  # type: ignore[attr-defined]
    return any(method_class(one).build_student.__func__ is not own for one in methods)  # type: ignore[attr-defined]


def check_student(
    methods: Sequence[MethodSettings], student: nn.Module, *, image_size: int, channels: int
) -> None:
    """Raises ModelError for a student that `build_student` could not use, whatever the teacher."""
    for one in methods:
        # Each looks at its own, for it may take it apart.
        mine = copy.deepcopy(student)
        method_class(one).check_student(one, mine, image_size=image_size, channels=channels)


def method_class(settings: MethodSettings) -> type[Method]:
    """The class that `method: "module:Class"` of the settings class names. Raises ModelError."""
    from stages.methods.base import Method

    kind = type(settings)
    where = f"{kind.__module__}:{kind.__qualname__}"
    target = getattr(kind, "method", "")
    module, _, name = target.partition(":")
    if not module or not name:
        raise ModelError(
            "a settings class names no method",
            where=where,
            why=f"its `method` is {target!r}; expected 'module:Class'",
            hint='give the class the attribute `method: ClassVar[str] = "module:Class"`',
        )
    try:
        found = plugins.imported(target)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"the method {target} cannot be imported",
            where=where,
            why=f"{type(error).__name__}: {error}",
            hint="correct the `method` attribute, or install what the plug-in needs",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ModelError(
            f"{target} is no method", where=where, why="expected a subclass of stages.methods.base.Method"
        )
    return found


def warmup_factor(settings: MethodSettings, epoch_progress: float) -> float:
    """The share, 0 to 1, of the method's weight: it rises linearly over `warmup_epochs`.

    epoch_progress: epochs done, with the fraction of the running one (0.0 at the first step).
    """
    if settings.warmup_epochs <= 0.0:
        return 1.0
    return min(1.0, max(0.0, epoch_progress) / settings.warmup_epochs)
