"""What the loop trains: one module with one forward, whatever the stage.

Student, projectors and loss parameters are part of it, so that DDP synchronises them and the optimiser
has every one of them. The teacher is not: it must not be trained, averaged, put into training mode or
saved.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from stages.data.preprocessing import Preprocessing
from stages.methods import registry
from stages.methods.base import Batch
from stages.methods.observed import ObservedTeacher
from stages.methods.settings import MethodSettings
from stages.models.features import Features, Needs
from stages.models.observer import Observer
from stages.training.supply import Normalise, Supply, cache_limit_bytes

Autocast = Callable[[], AbstractContextManager[object]]

CACHE_BATCH_SIZE = 256
"""Images a step while the teacher's features are computed for the cache."""


class Task(nn.Module, ABC):
    """A network and what it learns from.

    Attributes:
        network: The network whose weights are the result.
        names: Names of the losses beside the label loss.
        preprocessings: One for each image input of `forward`, the network's own first.
        label_weight: Factor of the cross-entropy with the true labels.
    """

    network: nn.Module
    names: tuple[str, ...] = ()
    preprocessings: tuple[Preprocessing, ...]
    label_weight: float = 1.0

    def factors(self, _epoch_progress: float) -> list[float]:
        """Return each loss's weight after so many epochs, in the order of `names`."""
        return []

    def prepare(self, device: torch.device, channels_last: bool) -> None:
        """Move networks that are not in the module tree to the device and its memory format."""

    def cache_features(
        self, training: Supply, normalise: Normalise, autocast: Autocast, on_progress: Callable[[int], None]
    ) -> None:
        """Compute once what is the same in every epoch. Called if every image has only one view.

        Args:
            training: Training images.
            normalise: Normalisation of the last image input.
            autocast: Context of the forward passes, for mixed precision.
            on_progress: Called after each batch with the number of images done.
        """

    @property
    def views(self) -> int:
        """Number of image inputs of `forward`."""
        return len(self.preprocessings)

    @abstractmethod
    def forward(self, labels: Tensor, indices: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and losses of one step.

        Args:
            labels: int64 (n).
            indices: int64 (n), each image's index in the training supply.
            images: `views` times normalised float (n, channels, side, side).

        Returns:
            Logits (n, classes), and the unweighted losses, float32 (len(names)).
        """


class SupervisedTask(Task):
    """A network that learns only from the labels: the teacher, the baseline.

    Args:
        network: The network.
        preprocessing: The network's normalisation and size.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessings = (preprocessing,)

    def forward(
        self,
        _labels: Tensor,
        _indices: Tensor,
        *images: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's logits (n, classes), and no loss: float32 (0)."""
        logits = self.network(images[0])
        return logits, logits.new_zeros(0, dtype=torch.float32)


class Distillation(Task):
    """A student that learns from the labels and, through the methods, from the teacher.

    Args:
        student: The network that learns.
        teacher: The network that it learns from; frozen here, and in evaluation mode for good.
        methods: The methods' settings (`stages.methods.settings`); `registry.make` creates the losses
            for the features that both networks have.
        preprocessings: The student's and the teacher's.
        label_weight: Factor of the cross-entropy with the true labels.
        labels: int64 (n), labels of the training images, in the training supply's order.

    Raises:
        ModelError: The networks lack a feature that a method needs.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        methods: Sequence[MethodSettings],
        preprocessings: tuple[Preprocessing, Preprocessing],
        *,
        label_weight: float = 1.0,
        labels: Tensor,
    ) -> None:
        super().__init__()
        self.network = student
        self.preprocessings = preprocessings
        self.label_weight = label_weight
        self.names = column_names(methods)
        self._settings = tuple(methods)
        teacher.requires_grad_(False).eval()
        needs = needs_of(methods)
        student_observer, teacher_observer = Observer(student, needs), Observer(teacher, needs)
        student_spec, teacher_spec = (
            observer.spec(images.side, images.channels)
            for observer, images in zip((student_observer, teacher_observer), preprocessings, strict=True)
        )
        if needs.teacher_again:
            teacher_observer.require_alterable(preprocessings[1].side, preprocessings[1].channels)
        losses = [registry.make(method, student_spec, teacher_spec) for method in methods]
        for loss in losses:
            loss.prepare(labels)
        self.methods = nn.ModuleList(losses)
        self._runs_again = needs.teacher_again
        # In a tuple, not as attributes: the teacher is then no part of this module.
        self._observers = (student_observer, teacher_observer)
        self._cached: Features | None = None

    def factors(self, epoch_progress: float) -> list[float]:
        """Return each method's weight, which its warm-up scales, after `epoch_progress` epochs."""
        return [method.weight * registry.warmup_factor(method, epoch_progress) for method in self._settings]

    def prepare(self, device: torch.device, channels_last: bool) -> None:
        """Move the teacher to the device and its memory format."""
        self._observers[1].model.to(device)
        if channels_last:
            self._observers[1].model.to(memory_format=torch.channels_last)

    def cache_features(
        self, training: Supply, normalise: Normalise, autocast: Autocast, on_progress: Callable[[int], None]
    ) -> None:
        """Compute the teacher's features of every training image, if they fit into memory.

        An image that looks the same in every epoch needs only one forward pass of the teacher.

        Args:
            training: Training images.
            normalise: The teacher's normalisation.
            autocast: Context of the forward passes, for mixed precision.
            on_progress: Called after each batch with the number of images done.
        """
        if self._runs_again:
            return
        parts: list[Features] = []
        done = 0
        with torch.no_grad(), autocast():
            for images, labels in training.batches(CACHE_BATCH_SIZE):
                parts.append(self._observers[1](normalise(images)))
                done += len(labels)
                if done == len(labels):
                    total_bytes = _size_bytes(parts[0]) / done * training.count
                    if total_bytes > cache_limit_bytes(training.device):
                        return
                on_progress(done)
        self._cached = _concatenated(parts)

    @property
    def views(self) -> int:
        """Number of image inputs: the teacher needs none if its features are cached."""
        return 2 if self._cached is None else 1

    def forward(self, labels: Tensor, indices: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's logits and each method's unweighted loss.

        Args:
            labels: int64 (n).
            indices: int64 (n), each image's index in the training supply.
            images: The images as the student takes them and, without cached features, as the teacher
                takes them: normalised float (n, channels, side, side).

        Returns:
            Logits (n, classes), and the losses, float32 (len(names)).
        """
        student_observer, teacher_observer = self._observers
        # no_grad, not inference_mode: losses save the teacher's tensors for the backward pass.
        with torch.no_grad():
            if self._cached is not None:
                teacher = _map_tensors(self._cached, lambda tensor: tensor[indices])
            else:
                teacher = teacher_observer(images[1])
        student = student_observer(images[0])
        batch = Batch(labels, indices, ObservedTeacher(teacher_observer, images[-1]), student_observer)
        losses = [method(student, teacher, batch) for method in self.methods]
        return student.logits, torch.stack([loss.float() for loss in losses])


def _map_tensors(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return replace(
        features,
        logits=change(features.logits),
        embedding=change(features.embedding),
        map=change(features.map),
        stages=tuple(change(stage) for stage in features.stages),
        ends=tuple(change(end) for end in features.ends),
        map_before=None if features.map_before is None else change(features.map_before),
        ends_before=tuple(change(end) for end in features.ends_before),
    )


def _concatenated(parts: list[Features]) -> Features:
    """Return the features of several batches as those of one batch."""
    columns = iter(zip(*(_tensors(part) for part in parts), strict=True))
    return _map_tensors(parts[0], lambda _: torch.cat(next(columns)))


def _tensors(features: Features) -> list[Tensor]:
    """Return all tensors, in the order of `_map_tensors`."""
    tensors: list[Tensor] = []
    _map_tensors(features, lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return tensors


def _size_bytes(features: Features) -> int:
    return sum(tensor.nbytes for tensor in _tensors(features))


def column_names(methods: Sequence[MethodSettings]) -> tuple[str, ...]:
    """Return the methods' names, numbered from the second of equal names on: kd, kd_2."""
    counts: Counter[str] = Counter()
    names = []
    for method in methods:
        name: str = method.name  # type: ignore[attr-defined]
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return tuple(names)


def needs_of(methods: Sequence[MethodSettings]) -> Needs:
    """Return which features the methods need, all together."""
    return functools.reduce(operator.or_, map(registry.needs, methods), Needs())
