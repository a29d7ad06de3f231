"""One of two processes, each with half of the batch: python -m ... RANK RENDEZVOUS OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from stages.methods import registry
from stages.methods.settings import (
    CrdSettings,
    DcdSettings,
    DistSettings,
    DkdSettings,
    FbtSettings,
    KdSettings,
    LfccSettings,
    MethodSettings,
    MlkdSettings,
    MsdcrdSettings,
    RkdSettings,
    RsdSettings,
    SddSettings,
    UhkdSettings,
)
from stages.models.features import Features, Needs
from tests.stages.methods import made

LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
IMAGES = len(LABELS)
CASES: list[MethodSettings] = [
    MsdcrdSettings(name="msdcrd"),
    MsdcrdSettings(name="msdcrd", symmetric=True),
    MsdcrdSettings(
        name="msdcrd", negatives="joint", symmetric=True, exclude_same_class=True, overlap_iou=0.2
    ),
    MsdcrdSettings(name="msdcrd", projector="both_128", learn_tau=True),
    MsdcrdSettings(name="msdcrd", layers="ends", activation="before"),
    MsdcrdSettings(name="msdcrd", feature_axis="channel"),
    MsdcrdSettings(name="msdcrd", selection="sdd", scale_weights="pyramid"),
    MsdcrdSettings(name="msdcrd", selection="topk", topk=3, symmetric=True),
    MsdcrdSettings(name="msdcrd", exclude_same_class=True, lambda_kd=0.5),
    CrdSettings(name="crd", proj_dim=8),
    CrdSettings(name="crd", proj_dim=8, shared_negatives=True),
    DcdSettings(name="dcd"),
    DcdSettings(name="dcd", symmetric=True, detach_consistency_target=True),
    DcdSettings(name="dcd", symmetric=True, consistency_weight=0.0),
    RsdSettings(name="rsd"),
    LfccSettings(name="lfcc", proj_dim=8),
    LfccSettings(name="lfcc", proj_dim=8, unit="cell", symmetric=True, filter="learnable_depthwise"),
    KdSettings(name="kd", logit_standardisation=True),
    DkdSettings(name="dkd"),
    DistSettings(name="dist"),
    DistSettings(name="dist", beta=0.0, temperature=4.0),
    MlkdSettings(name="mlkd"),
    RkdSettings(name="rkd"),
    RkdSettings(name="rkd", angle_weight=0.0),
    SddSettings(name="sdd", inner="dkd"),
    UhkdSettings(name="uhkd"),
    FbtSettings(name="fbt"),
    FbtSettings(name="fbt", lambda_logits=0.0),
]
"""Methods whose loss over two halves of a batch is to be that over the whole."""

STUDENT = [(4, 8, 8), (5, 4, 4), (4, 4, 4)]
TEACHER = [(3, 16, 16), (4, 8, 8), (6, 8, 8), (6, 8, 8)]
"""(C, H, W) of the stage ends, the last that of the map as well."""


def title(settings: MethodSettings) -> str:
    """The case as its keys that are not the defaults."""
    return " ".join(f"{key}={value}" for key, value in settings.model_dump(exclude_defaults=True).items())


def results(start: int, stop: int) -> list[dict[str, Tensor]]:
    """By case: the loss of images start to stop, its gradients by parameter and, as "student ...", by
    tensor of the student, and as "state ..." what the method keeps for the next step."""
    return [_result(settings, start, stop) for settings in CASES]


def _result(settings: MethodSettings, start: int, stop: int) -> dict[str, Tensor]:
    needs = registry.needs(settings)
    leaves: dict[str, Tensor] = {}
    student = _shown(STUDENT, 1, needs, start, stop, leaves)
    teacher = _shown(TEACHER, 2, needs, start, stop, {})
    torch.manual_seed(1)
    method = registry.make(settings, made.spec(student), made.spec(teacher))
    method.prepare(LABELS)
    torch.manual_seed(2)
    batch = made.batch(
        LABELS[start:stop], made.head(TEACHER[-1][0]), indices=torch.arange(start, stop), shown=teacher
    )
    for leaf in leaves.values():
        leaf.requires_grad_()
    loss = method(student, teacher, batch)
    loss.backward()
    named = {f"student {name}": leaf for name, leaf in leaves.items()} | dict(method.named_parameters())
    gradients = {name: value.grad for name, value in named.items() if value.grad is not None}
    kept = {
        f"state {name}": value
        for name, value in method.state_dict().items()
        if name not in dict(method.named_parameters())
    }
    return {"loss": loss.detach(), **gradients, **kept}


def _shown(
    shapes: list[tuple[int, int, int]],
    seed: int,
    needs: Needs,
    start: int,
    stop: int,
    leaves: dict[str, Tensor],
) -> Features:
    """What a network shows of these images; every tensor is one of its own, noted in `leaves`."""

    def leaf(name: str, whole: Tensor) -> Tensor:
        leaves[name] = whole[start:stop].clone()
        return leaves[name]

    def maps(shape: tuple[int, int, int], number: int) -> Tensor:
        return made.maps(IMAGES, *shape, seed=10 * seed + number)

    final = maps(shapes[-1], 0)
    ends = list(enumerate(shapes)) if needs.ends else []
    stages = [(number, shapes[number]) for number in needs.stages]
    return Features(
        logits=leaf("logits", made.head(shapes[-1][0], seed)(final.mean((2, 3)))),
        embedding=leaf("embedding", final.mean((2, 3))),
        map=leaf("map", final),
        stages=tuple(leaf(f"stage {number}", maps(shape, 20 + number)) for number, shape in stages),
        stage_numbers=needs.stages,
        ends=tuple(leaf(f"end {number}", maps(shape, 30 + number)) for number, shape in ends),
        map_before=leaf("map before", final - 0.5),
        ends_before=tuple(leaf(f"end {number} before", maps(shape, 30 + number)) for number, shape in ends),
    )


if __name__ == "__main__":
    rank, rendezvous, output = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    half = IMAGES // 2
    torch.save(results(rank * half, (rank + 1) * half), output)
    distributed.destroy_process_group()
