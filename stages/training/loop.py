"""The training loop, one for teacher, student and baseline.

Nothing is read back from the device inside an epoch: sums of losses stay there and are read once,
at its end. All that is random is seeded by (seed, epoch), so that a checkpoint at an epoch's end
needs no state of any generator, and a resumed run ends as an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.training import judge, recipe as recipes
from stages.training.augment import Augmentation, order_of, seed_of
from stages.training.checkpoint import Checkpoints, State
from stages.training.settings import ComputeSettings, RecipeSettings
from stages.training.supply import Normalise, Supply
from stages.training.tasks import Task

Weights = dict[str, Tensor]

WAITING_SHARE = 0.3
"""Above this share of an epoch spent on waiting for images, reading them is the bottleneck."""


@dataclass(frozen=True)
class Told:
    """One training's part of a stage's progress, in images."""

    progress: Progress
    before: int = 0
    total: int = 0

    def update(self, done: int, **figures: float | str) -> None:
        self.progress.update(self.before + done, self.total, unit="images", **figures)


@dataclass
class Kept:
    """The epoch that is the result so far; epoch 0: nothing trained yet."""

    epoch: int = 0
    val_top1: float = -1.0
    val_loss: float = math.inf
    weights: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a training gave; the task's network holds the kept weights afterwards.

    history: one row an epoch, named as in docs/artefacts.md.
    images_per_s, seconds_per_epoch: medians over the epochs trained in this process, without
        validation; 0 where none was.
    bottleneck: reading, computing, or empty.
    """

    best_epoch: int
    val_top1: float
    val_loss: float
    history: list[dict[str, float]]
    images_per_s: float
    seconds_per_epoch: float
    bottleneck: str


def images_seen(recipe: RecipeSettings, count: int) -> int:
    """Images that `fit` goes through: whole batches alone, in every epoch."""
    return recipe.epochs * (count // recipe.batch_size) * recipe.batch_size


def fit(
    fabric: Fabric,
    task: Task,
    recipe: RecipeSettings,
    training: Supply,
    validation: Supply,
    *,
    seed: int,
    compute: ComputeSettings,
    section: str,
    told: Told,
    checkpoints: Checkpoints | None = None,
    more_follows: bool = False,
) -> Outcome:
    """Trains `task` by `recipe` and leaves the kept weights in `task.network`.

    section: train or distill, for messages. more_follows: the stage goes on afterwards, so the
    last epoch gets a checkpoint as well. Raises StageError if the loss stops being finite.
    """
    if compute.channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = recipes.optimizer(recipe, task, section=section, fused=compute.precision != "fp16")
    module, stepper = fabric.setup(torch.compile(task) if compute.compile else task, optimizer)
    task.to_device(fabric.device)
    normalises = [
        Normalise(preprocessing, fabric.device, channels_last=compute.channels_last)
        for preprocessing in task.preprocessings
    ]
    steps = training.count // recipe.batch_size
    schedule = recipes.scheduler(recipe, optimizer, max(1, steps))
    average = Average(task.network, recipe.ema) if recipe.ema is not None else None
    kept, history, begun = Kept(), [], 0
    state = checkpoints.load() if checkpoints is not None else None
    if state is not None:
        begun, kept, history = _restore(state, fabric, task, optimizer, average)
        schedule.step_update(begun * steps)
        told.progress.note(f"goes on after epoch {begun} of {recipe.epochs}")
    shown: dict[str, float | str] = {}
    durations: list[float] = []
    waited_before = training.waited_s
    for epoch in range(begun + 1, recipe.epochs + 1):
        started = time.perf_counter()
        sums = _epoch(
            fabric, task, module, stepper, recipe, training, normalises, schedule, average,
            epoch=epoch, steps=steps, seed=seed, told=told, shown=shown,
        )  # fmt: skip
        row = {"epoch": float(epoch), "learning_rate": sums.pop("learning_rate"), **sums}
        durations.append(time.perf_counter() - started)
        top1, loss = _validate(fabric, task, average, validation, normalises[0], recipe.batch_size)
        row |= {"val_loss": loss, "val_top1": top1}
        if not (math.isfinite(row["train_loss"]) and math.isfinite(loss)):
            raise _diverged(epoch, row, recipe, section, fabric)
        history.append(row)
        if recipe.keep == "last" or (top1, -loss) > (kept.val_top1, -kept.val_loss):
            kept = Kept(epoch, top1, loss, _weights(task.network, average))
        shown = {"val_top1": round(top1, 2)}
        last = epoch == recipe.epochs
        if checkpoints is not None and fabric.global_rank == 0:
            if more_follows if last else checkpoints.due():
                checkpoints.save(epoch, _state(epoch, kept, history, fabric, task, optimizer, average))
    if kept.epoch == 0:
        top1, loss = _validate(fabric, task, None, validation, normalises[0], recipe.batch_size)
        kept = Kept(0, top1, loss, _weights(task.network, None))
    task.network.load_state_dict(kept.weights)
    seconds = median(durations) if durations else 0.0
    waiting = (training.waited_s - waited_before) / sum(durations) if durations else 0.0
    return Outcome(
        best_epoch=kept.epoch,
        val_top1=kept.val_top1,
        val_loss=kept.val_loss,
        history=history,
        images_per_s=steps * recipe.batch_size / seconds if seconds else 0.0,
        seconds_per_epoch=seconds,
        bottleneck="" if not durations else "reading" if waiting > WAITING_SHARE else "computing",
    )


def _epoch(
    fabric: Fabric,
    task: Task,
    module: Callable[..., tuple[Tensor, Tensor]],
    optimizer: Any,
    recipe: RecipeSettings,
    training: Supply,
    normalises: list[Normalise],
    schedule: Any,
    average: Average | None,
    *,
    epoch: int,
    steps: int,
    seed: int,
    told: Told,
    shown: dict[str, float | str],
) -> dict[str, float]:
    """One pass over the training images; the epoch's means by name."""
    ranks, rank, device = fabric.world_size, fabric.global_rank, fabric.device
    local = recipe.batch_size // ranks
    order = order_of(training.count, seed, epoch)[: steps * recipe.batch_size]
    mine = np.ascontiguousarray(order.reshape(steps, ranks, local)[:, rank].ravel())
    views = Augmentation(
        recipe.augment, seed=seed, epoch=epoch, rank=rank, device=device, fill=normalises[0].fill
    )
    torch.manual_seed(seed_of(seed, epoch, "network", rank))  # dropout, stochastic depth
    # Every step's factors at once: one transfer an epoch. (steps, losses)
    factors = torch.tensor(
        [task.factors(epoch - 1 + step / steps) for step in range(steps)], dtype=torch.float32, device=device
    ).reshape(steps, len(task.names))
    precise = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(3 + len(task.names), dtype=precise, device=device)
    rate = float(optimizer.param_groups[0]["lr"])
    task.train()
    for step, (images, labels) in enumerate(training.batches(local, order=mine)):
        view = views(images, labels)
        inputs = _inputs(view.images, normalises)
        answers, losses = module(view.labels, *inputs)
        label_loss = task.label_weight * view.cross_entropy(answers, recipe.label_smoothing)
        weighted = losses * factors[step]
        loss = label_loss + weighted.sum()
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip_grad is not None:
            fabric.clip_gradients(module, optimizer, max_norm=recipe.clip_grad, error_if_nonfinite=False)
        optimizer.step()
        updates = (epoch - 1) * steps + step + 1
        schedule.step_update(updates)
        if average is not None:
            average.update(updates)
        with torch.no_grad():
            right = (answers.argmax(dim=1) == view.labels).float().mean()
            sums += torch.cat([torch.stack([loss, label_loss, right]), weighted]).detach()
        told.update(updates * recipe.batch_size, epoch=epoch, **shown)
    means = (fabric.all_reduce(sums, reduce_op="sum") / (ranks * steps)).tolist()
    row = {"learning_rate": rate, "train_loss": means[0], "train_top1": 100.0 * means[2]}
    if task.names:
        row |= {"loss_labels": means[1]}
        row |= {f"loss_{name}": mean for name, mean in zip(task.names, means[3:], strict=True)}
    return row


def _inputs(images: Tensor, normalises: list[Normalise]) -> list[Tensor]:
    """The same view for each network, by its own constants; made once where they are equal."""
    made = [normalises[0](images)]
    for normalise in normalises[1:]:
        same = normalise.preprocessing == normalises[0].preprocessing
        made.append(made[0] if same else normalise(images))
    return made


def _validate(
    fabric: Fabric, task: Task, average: Average | None, validation: Supply, normalise: Normalise, batch: int
) -> tuple[float, float]:
    """(top-1 in per cent, loss) of the weights that would be kept. The first process judges: its
    running statistics are those that are kept."""
    found = (0.0, 0.0)
    if fabric.global_rank == 0:
        with average.in_place() if average is not None else _as_it_is():
            answers = judge.logits(
                task.network, validation, normalise, batch_size=max(batch, 256), autocast=fabric.autocast
            )
        found = judge.top1_and_loss(answers, torch.from_numpy(validation.labels))
    top1, loss = fabric.broadcast(found)
    return top1, loss


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


class Average:
    """Exponential moving average of a network's weights and running statistics.

    The decay rises as (1 + updates) / (10 + updates) up to `decay`, so that a short training is
    not an average with its random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: value for name, value in network.state_dict(keep_vars=True).items()}
        self.values: Weights = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        floats = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.values[name] for name in floats], [self._live[name] for name in floats], 1.0 - decay
        )
        for name, value in self.values.items():
            if not value.is_floating_point():
                value.copy_(self._live[name])

    def load(self, values: Weights) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average meanwhile: storages change places, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.values.items():
            live = self._live[name]
            live.data, value.data = value.data, live.data


def _weights(network: nn.Module, average: Average | None) -> Weights:
    """A copy on the CPU of what would be kept now."""
    source = average.values if average is not None else network.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in source.items()}


def _state(
    epoch: int,
    kept: Kept,
    history: list[dict[str, float]],
    fabric: Fabric,
    task: Task,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> State:
    """All that the next epoch depends on. Generators are not among it: each epoch seeds its own."""
    return {
        "epoch": epoch,
        "task": task.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
        "average": average.values if average is not None else None,
        "kept": {
            "epoch": kept.epoch,
            "val_top1": kept.val_top1,
            "val_loss": kept.val_loss,
            "weights": kept.weights,
        },
        "history": history,
    }


def _restore(
    state: State, fabric: Fabric, task: Task, optimizer: torch.optim.Optimizer, average: Average | None
) -> tuple[int, Kept, list[dict[str, float]]]:
    task.load_state_dict(state["task"])
    optimizer.load_state_dict(state["optimizer"])
    if state["precision"]:
        fabric.strategy.precision.load_state_dict(state["precision"])
    if average is not None:
        average.load(state["average"])
    return int(state["epoch"]), Kept(**state["kept"]), list(state["history"])


def _diverged(
    epoch: int, row: dict[str, float], recipe: RecipeSettings, section: str, fabric: Fabric
) -> StageError:
    advice = f"--set {section}.learning_rate={recipe.learning_rate / 10:g}"
    if recipe.clip_grad is None:
        advice += f", or --set {section}.clip_grad=1.0"
    if "mixed" in str(fabric.strategy.precision.precision):
        advice += ", or --set compute.precision=fp32"
    which = "training" if not math.isfinite(row["train_loss"]) else "validation"
    return StageError(
        f"The training diverged: the {which} loss is not finite in epoch {epoch} of {recipe.epochs}",
        where=section,
        why=f"train_loss {row['train_loss']:g}, val_loss {row['val_loss']:g} "
        f"at learning rate {row['learning_rate']:g}",
        mend=advice,
    )
