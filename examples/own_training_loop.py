"""Distill with MSDCRD in a plain PyTorch training loop, without a profile.

    python examples/own_training_loop.py

Trains a teacher and a student on scikit-learn's handwritten digits (1797 images, part of scikit-learn).
The student learns from the labels and, through MSDCRD, from the teacher. Takes about 20 s on a CPU.
"""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from stages.methods.msdcrd import Msdcrd
from stages.methods.observed import run_networks
from stages.models.observer import Observer

SIZE, BATCH = 32, 64


def main() -> None:
    """Train the teacher, then the student with MSDCRD, and print both accuracies."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small are fastest with one thread
    train_images, train_labels, test_images, test_labels = digits()
    teacher = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    student = timm.create_model("test_byobnet", in_chans=1, num_classes=10)

    train_teacher(teacher, train_images, train_labels, epochs=2)
    print(f"teacher accuracy: {accuracy(teacher, test_images, test_labels):.3f}", flush=True)
    distill(student, teacher, train_images, train_labels, epochs=3)
    print(f"student accuracy: {accuracy(student, test_images, test_labels):.3f}")


def distill(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Train the student with the labels and MSDCRD."""
    # Observers run a network and return its logits, pooled vector and maps.
    needs = Msdcrd.needs(layers="last")
    student_observer = Observer(student, needs)
    teacher_observer = Observer(teacher, needs).eval().requires_grad_(False)
    method = Msdcrd(
        student_observer.spec(SIZE, 1), teacher_observer.spec(SIZE, 1), layers="last", tau_sample=0.1
    )
    # The method's own parameters (its projectors) are trained with the student's and discarded afterwards.
    optimizer = torch.optim.AdamW([*student.parameters(), *method.parameters()], lr=3e-3)

    student.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(BATCH):
            features, teacher_features, batch = run_networks(
                student_observer, teacher_observer, images[rows], labels[rows]
            )
            loss = cross_entropy(features.logits, labels[rows])
            loss = loss + method(features, teacher_features, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}: loss {total / len(images):.3f}", flush=True)


def train_teacher(teacher: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Train the teacher with the labels only."""
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    teacher.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(teacher(images[rows]), labels[rows]).backward()
            optimizer.step()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load training images and labels, and test images and labels; normalized and enlarged to SIZE."""
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).float()[:, None] / 16.0
    images = interpolate((pixels - 0.3) / 0.38, size=(SIZE, SIZE), mode="bilinear")
    labels = torch.from_numpy(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the share of correct predictions, 0 to 1."""
    network.eval()
    return (network(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
