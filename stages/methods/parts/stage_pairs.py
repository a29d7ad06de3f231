"""Pairs of stage ends: which map of the student corresponds to which map of the teacher."""

from __future__ import annotations

from pipeline.errors import ModelError
from stages.models.features import FeatureSpec

Shape = tuple[int, int, int]
"""(C, H, W) of a map."""


def paired_stage_ends(
    name: str, student: FeatureSpec, teacher: FeatureSpec, *, at_least: int = 1
) -> list[tuple[Shape, Shape]]:
    """Pair the stage ends of two networks, starting at the deepest.

    Networks have different numbers of stages: the deepest end of one network is paired with the deepest
    end of the other, then the one before it, until one of the networks has no more ends.

    Args:
        name: The method's name, for the error message.
        student: The student's shapes.
        teacher: The teacher's shapes.
        at_least: The number of pairs that the method needs.

    Returns:
        The student's and the teacher's (C, H, W) of each pair, the shallowest pair first.

    Raises:
        ModelError: There are fewer than `at_least` pairs.
    """
    count = min(len(student.ends), len(teacher.ends))
    if count < at_least:
        fewest, role = min((len(student.ends), "student"), (len(teacher.ends), "teacher"))
        raise ModelError(
            f"{name} needs a {role} with at least {at_least} stage ends",
            why=f"the {role}'s architecture shows {fewest}",
            hint="choose one of timm's architectures with several stages, or the method kd",
        )
    return list(zip(student.ends[-count:], teacher.ends[-count:], strict=True)) if count else []
