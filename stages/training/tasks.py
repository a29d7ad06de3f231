"""What the loop trains: one module with one forward, whatever the stage.

Student, projectors and loss parameters lie in it, so that they are synchronised between devices
and the optimiser sees every one of them. The teacher does not: it must not be trained, averaged,
put into training mode or saved.
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
from stages.training.supply import Normalise, Supply, room_bytes

Autocast = Callable[[], AbstractContextManager[object]]

REMEMBERED_AT_ONCE = 256
"""Images a step while the teacher's features are remembered."""


class Task(nn.Module, ABC):
    """A network and what it learns from.

    network: whose weights are kept. names: of the losses beside the label loss.
    preprocessings: one for each image input of `forward`, the network's own first.
    label_weight: factor of the cross-entropy with the true labels.
    """

    network: nn.Module
    names: tuple[str, ...] = ()
    preprocessings: tuple[Preprocessing, ...]
    label_weight: float = 1.0

    def factors(self, epoch_progress: float) -> list[float]:
        """Each loss's weight after `epoch_progress` epochs, in the order of `names`."""
        return []

    def prepare(self, device: torch.device, channels_last: bool) -> None:
        """Brings what is not in the module tree to where the rest is."""

    def remember(
        self, training: Supply, normalise: Normalise, autocast: Autocast, tell: Callable[[int], None]
    ) -> None:
        """Computes once what stays the same in every epoch; called where images have one view."""

    @property
    def views(self) -> int:
        """How many image inputs `forward` takes."""
        return len(self.preprocessings)

    @abstractmethod
    def forward(self, labels: Tensor, which: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (n), int64 (n) places in the training supply, and `views` times normalised float
        (n, channels, side, side) -> (logits (n, classes), unweighted losses float32 (len(names))).
        """


class Alone(Task):
    """A network that learns from the labels alone: the teacher, the baseline."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessings = (preprocessing,)

    def forward(self, labels: Tensor, which: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.network(images[0])
        return answers, answers.new_zeros(0, dtype=torch.float32)


class Distillation(Task):
    """A student that learns from the labels and, through the methods, from the teacher.

    teacher: frozen here, in evaluation mode for good.
    methods: the settings of the losses; the modules are made here, after a look at both networks.
    labels: int64 (n), of the training images, in the training supply's order.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        methods: Sequence[MethodSettings],
        preprocessings: tuple[Preprocessing, Preprocessing],
        *,
        label_weight: float,
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
            observer.spec(seen.side, seen.channels)
            for observer, seen in zip((student_observer, teacher_observer), preprocessings, strict=True)
        )
        if needs.teacher_again:
            teacher_observer.require_alterable(preprocessings[1].side, preprocessings[1].channels)
        made = [registry.make(one, student_spec, teacher_spec) for one in methods]
        for method in made:
            method.prepare(labels)
        self.methods = nn.ModuleList(made)
        self._runs_again = needs.teacher_again
        # In a tuple, not as attributes: so the teacher is no part of this module.
        self._observers = (student_observer, teacher_observer)
        self._remembered: Features | None = None

    def factors(self, epoch_progress: float) -> list[float]:
        return [one.weight * registry.warmup_factor(one, epoch_progress) for one in self._settings]

    def prepare(self, device: torch.device, channels_last: bool) -> None:
        self._observers[1].model.to(device)
        if channels_last:
            self._observers[1].model.to(memory_format=torch.channels_last)

    def remember(
        self, training: Supply, normalise: Normalise, autocast: Autocast, tell: Callable[[int], None]
    ) -> None:
        """The teacher's features of every training image, if there is room for them: an image that
        looks the same in every epoch needs one look of the teacher.
        """
        if self._runs_again:
            return
        seen: list[Features] = []
        done = 0
        with torch.no_grad(), autocast():
            for images, labels in training.batches(REMEMBERED_AT_ONCE):
                seen.append(self._observers[1](normalise(images)))
                done += len(labels)
                if done == len(labels) and _bytes(seen[0]) / done * training.count > room_bytes(
                    training.device
                ):
                    return
                tell(done)
        self._remembered = _together(seen)

    @property
    def views(self) -> int:
        return 2 if self._remembered is None else 1

    def forward(self, labels: Tensor, which: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        student_observer, teacher_observer = self._observers
        # no_grad, not inference_mode: losses save the teacher's tensors for the backward pass.
        with torch.no_grad():
            if self._remembered is not None:
                teacher = _each(self._remembered, lambda tensor: tensor[which])
            else:
                teacher = teacher_observer(images[1])
        student = student_observer(images[0])
        batch = Batch(labels, which, ObservedTeacher(teacher_observer, images[-1]), student_observer)
        losses = [method(student, teacher, batch) for method in self.methods]
        return student.logits, torch.stack([loss.float() for loss in losses])


def _each(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
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


def _together(parts: list[Features]) -> Features:
    """The features of several batches as those of one."""
    columns = iter(zip(*(_tensors(part) for part in parts), strict=True))
    return _each(parts[0], lambda _: torch.cat(next(columns)))


def _tensors(features: Features) -> list[Tensor]:
    """All of them, in the order in which `_each` goes through them."""
    found: list[Tensor] = []
    _each(features, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _bytes(features: Features) -> int:
    return sum(tensor.nbytes for tensor in _tensors(features))


def column_names(methods: Sequence[MethodSettings]) -> tuple[str, ...]:
    """The methods' names, numbered from the second of a name on: kd, kd_2."""
    seen: Counter[str] = Counter()
    names = []
    for one in methods:
        name: str = one.name  # type: ignore[attr-defined]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(names)


def needs_of(methods: Sequence[MethodSettings]) -> Needs:
    """What all methods together look at."""
    return functools.reduce(operator.or_, map(registry.needs, methods), Needs())
