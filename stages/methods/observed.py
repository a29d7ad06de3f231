"""Run student and teacher on a batch, in the form in which a distillation method takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.base import Batch
from stages.models.features import Change, Features
from stages.models.observer import Observer


@dataclass(frozen=True)
class ObservedTeacher:
    """The teacher with the images of one step; a `stages.methods.base.Teacher`.

    Args:
        observer: The observer of the teacher.
        images: (B, C, H, W) float, normalized, as the teacher sees them.
    """

    observer: Observer
    images: Tensor

    def local_logits(self, vectors: Tensor) -> Tensor:
        """Apply the teacher's classifier; see `Head.local_logits`.

        Args:
            vectors: (B, M, C).

        Returns:
            (B, M, K) float32.
        """
        return self.observer.local_logits(vectors)

    def rerun_with_changed_maps(self, changes: Mapping[int, Change]) -> Features:
        """Run the teacher again; see `Teacher.rerun_with_changed_maps`.

        Args:
            changes: Replacements of maps by stage end, 0 the shallowest.

        Returns:
            The features of this run.
        """
        return self.observer.altered(self.images, changes)


def run_networks(
    student: Observer,
    teacher: Observer,
    images: Tensor,
    labels: Tensor,
    *,
    indices: Tensor | None = None,
    teacher_images: Tensor | None = None,
) -> tuple[Features, Features, Batch]:
    """Run both networks on a batch and return the three arguments of `Method.forward`.

    The teacher runs without gradient, in the mode in which it is: call `eval()` on it once.

    Args:
        student: The observer of the student.
        teacher: The observer of the teacher.
        images: (B, C, H, W) float, normalized.
        labels: (B,) int64, the true classes.
        indices: (B,) int64, each image's index in the training set, which only the method crd reads; by
            default the position in the batch.
        teacher_images: The same images in the teacher's size and normalization; by default `images`.

    Returns:
        The student's features, the teacher's features, and the batch.

    Example:
        >>> import timm, torch
        >>> from stages.methods.kd import Kd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet", num_classes=10), Kd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet", num_classes=10), Kd.needs()).eval()
        >>> method = Kd(student.spec(64, 3), teacher.spec(64, 3), temperature=2.0)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> student_features, teacher_features, batch = run_networks(student, teacher, images, labels)
        >>> loss = method(student_features, teacher_features, batch)
        >>> loss.backward()
    """
    teacher_images = images if teacher_images is None else teacher_images
    # no_grad, not inference_mode: losses save the teacher's tensors for the backward pass.
    with torch.no_grad():
        teacher_features = teacher(teacher_images)
    if indices is None:
        indices = torch.arange(len(labels), device=labels.device)
    batch = Batch(labels, indices, ObservedTeacher(teacher, teacher_images), student)
    return student(images), teacher_features, batch
