"""One of two processes, each with half of the batch: python -m ... RANK RENDEZVOUS OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.stages.methods import made

IMAGES = 6
CASES: list[dict[str, Any]] = [
    {},
    {"symmetric": True},
    {"negatives": "joint", "symmetric": True, "exclude_same_class": True, "overlap_iou": 0.2},
    {"projector": "both_128", "learn_tau": True},
    {"feature_axis": "channel"},
    {"selection": "sdd", "scale_weights": "pyramid"},
    {"selection": "topk", "topk": 3, "symmetric": True},
    {"exclude_same_class": True, "lambda_kd": 0.5},
]


def results(start: int, stop: int) -> list[dict[str, torch.Tensor]]:
    """By case: the loss of images start to stop, its gradients by parameter, and that of the map."""
    found = []
    for keys in CASES:
        whole = made.maps(IMAGES, 4, 4, 4, seed=1)
        student_map = whole[start:stop].clone().requires_grad_()
        student, teacher = (
            made.features(student_map),
            made.features(made.maps(IMAGES, 6, 8, 8, 2)[start:stop]),
        )
        method = made.method(student, teacher, **keys)
        labels = torch.tensor([0, 1, 2, 0, 1, 0])[start:stop]
        loss = method(student, teacher, made.batch(labels, made.head(6)))
        loss.backward()
        assert student_map.grad is not None
        gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), "map": student_map.grad, **gradients})
    return found


if __name__ == "__main__":
    rank, rendezvous, output = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    half = IMAGES // 2
    torch.save(results(rank * half, (rank + 1) * half), output)
    distributed.destroy_process_group()
