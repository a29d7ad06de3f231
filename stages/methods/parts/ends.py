"""Which stage ends of the student and of the teacher belong together."""

from __future__ import annotations

from pipeline.errors import ModelError
from stages.models.features import FeatureSpec

Shape = tuple[int, int, int]
"""(C, H, W) of a map."""


def paired(
    name: str, student: FeatureSpec, teacher: FeatureSpec, *, at_least: int = 1
) -> list[tuple[Shape, Shape]]:
    """(C, H, W) of the student's end and of the teacher's, the shallowest pair first.

    Networks show different numbers of ends: the deepest of the one goes with the deepest of the other,
    and so on upwards as far as both have any. Raises ModelError where that gives fewer than
    `at_least` pairs for the method `name`.
    """
    count = min(len(student.ends), len(teacher.ends))
    if count < at_least:
        few, role = min((len(student.ends), "student"), (len(teacher.ends), "teacher"))
        raise ModelError(
            f"{name} needs a {role} with at least {at_least} stage ends",
            why=f"the {role}'s architecture shows {few}",
            hint="choose one of timm's architectures with several stages, or the method kd",
        )
    return list(zip(student.ends[-count:], teacher.ends[-count:], strict=True)) if count else []
