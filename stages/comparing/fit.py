"""Check that methods can be used with two networks, before anything is trained."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch

from pipeline.errors import ModelError
from stages.data.load import load
from stages.methods import registry
from stages.models.create import create
from stages.models.network_input import network_preprocessing
from stages.training.tasks import Distillation


def why_unfit(profiles: list[SimpleNamespace]) -> list[str]:
    """Return for each profile why its methods do not fit its teacher and student; empty if they fit.

    The networks get random weights.

    Args:
        profiles: The sections data, teacher, student and distill; only `distill.methods` differs.

    Raises:
        UsageError: The data cannot be read, or a network cannot be created.
    """
    if not profiles:
        return []
    first = profiles[0]
    data = load(first.data)
    preprocessings = (
        network_preprocessing(first.student, data.preprocessing),
        network_preprocessing(first.teacher, data.preprocessing),
    )
    sizes = (preprocessings[0].side, preprocessings[1].side)
    with torch.random.fork_rng(devices=[]):
        bare = [
            create(
                model.model_copy(update={"pretrained": False, "checkpoint": None}),
                classes=len(data.classes),
                channels=data.preprocessing.channels,
                image_size=size,
            )
            for model, size in zip((first.student, first.teacher), sizes, strict=True)
        ]
        reasons = []
        for profile in profiles:
            student, teacher = copy.deepcopy(bare)
            try:
                student = registry.build_student(
                    profile.distill.methods,
                    student,
                    teacher,
                    image_sizes=sizes,
                    channels=data.preprocessing.channels,
                )
                Distillation(
                    student,
                    teacher,
                    profile.distill.methods,
                    preprocessings,
                    label_weight=profile.distill.label_weight,
                    labels=torch.from_numpy(data.train.labels),
                )
            except ModelError as error:
                reasons.append(f"{error.what}: {error.why}" if error.why else error.what)
            else:
                reasons.append("")
    return reasons
