"""The training loop, one for teacher, student and baseline.

Nothing is read back from the device inside an epoch: sums of losses stay there and are read once,
at its end. All that is random is seeded by (seed, epoch), so that a checkpoint at an epoch's end
needs no state of any generator, and a resumed run ends as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.training import judge
from stages.training import recipe as recipes
from stages.training.augment import Augmentation, order_of, seed_of
from stages.training.average import Average
from stages.training.checkpoint import Checkpoints, State
from stages.training.settings import ComputeSettings, RecipeSettings
from stages.training.supply import Normalise, Supply
from stages.training.tasks import Task

Weights = dict[str, Tensor]
Row = dict[str, float]

JUDGED_AT_ONCE = 256
"""Images a step while validating, at least: without gradients there is room for more than in training."""

WAITING_SHARE = 0.3
"""Above this share of the time spent on waiting for images, reading them is the bottleneck."""


@dataclass(frozen=True)
class Told:
    """One training's part of a stage's progress, in images: `before` done already, `total` in all."""

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
    """What a training gave; the task's network holds the kept weights.

    best_epoch: from 1; 0 if there was none and the starting weights are kept.
    last_weights, last_val_top1: of the last epoch, whichever is kept; on the CPU.
    history: one row an epoch, named as in docs/reference/artefacts.md.
    images_per_s, seconds_per_epoch: medians over the epochs trained in this process, without
        validation; 0 where none was.
    bottleneck: reading, computing, or empty where no epoch was trained.
    """

    best_epoch: int
    val_top1: float
    val_loss: float
    history: list[Row]
    images_per_s: float
    seconds_per_epoch: float
    bottleneck: str
    last_val_top1: float
    last_weights: Weights = field(repr=False)


@dataclass(frozen=True)
class _Running:
    """The things of one training that do not change while it runs."""

    fabric: Fabric
    task: Task
    module: Callable[..., tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    stepper: Any
    schedule: Scheduler
    average: Average | None
    recipe: RecipeSettings
    training: Supply
    validation: Supply
    normalises: list[Normalise]
    steps: int
    seed: int
    section: str
    told: Told


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

    section: train or distill, for messages. more_follows: the stage goes on afterwards, so that
    the end of this training is worth a checkpoint. Raises StageError if a loss is not finite.
    """
    run = _set_up(fabric, task, recipe, training, validation, seed, compute, section, told)
    if recipe.epochs and recipe.augment.still:
        task.remember(
            training, run.normalises[-1], fabric.autocast, lambda done: told.update(0, teacher=done)
        )
    state = checkpoints.load() if checkpoints is not None else None
    begun, kept, history = _restore(run, state) if state is not None else (0, Kept(), [])
    shown: dict[str, float | str] = {}
    durations: list[float] = []
    waited_s = training.waited_s
    for epoch in range(begun + 1, recipe.epochs + 1):
        started = time.perf_counter()
        row = _epoch(run, epoch, shown)
        durations.append(time.perf_counter() - started)
        top1, loss = _validate(run, run.average)
        row |= {"val_loss": loss, "val_top1": top1}
        _refuse_divergence(run, epoch, row)
        history.append(row)
        if recipe.keep == "last" or (top1, -loss) > (kept.val_top1, -kept.val_loss):
            kept = Kept(epoch, top1, loss, _weights(run, run.average))
        shown = {"val_top1": round(top1, 2)}
        told.update(epoch * run.steps * recipe.batch_size, epoch=epoch, **shown)
        if checkpoints is not None and fabric.is_global_zero:
            wanted = more_follows if epoch == recipe.epochs else checkpoints.due()
            if wanted:
                checkpoints.save(epoch, _state(run, epoch, kept, history))
    if kept.epoch == 0:
        kept = Kept(0, *_validate(run, None), _weights(run, None))
    last = _weights(run, run.average if recipe.epochs else None)
    task.network.load_state_dict(kept.weights)
    seconds = median(durations) if durations else 0.0
    waiting = (training.waited_s - waited_s) / sum(durations) if durations else 0.0
    return Outcome(
        best_epoch=kept.epoch,
        val_top1=kept.val_top1,
        val_loss=kept.val_loss,
        history=history,
        images_per_s=run.steps * recipe.batch_size / seconds if seconds else 0.0,
        seconds_per_epoch=seconds,
        bottleneck="" if not durations else "reading" if waiting > WAITING_SHARE else "computing",
        last_val_top1=history[-1]["val_top1"] if history else kept.val_top1,
        last_weights=last,
    )


def _set_up(
    fabric: Fabric,
    task: Task,
    recipe: RecipeSettings,
    training: Supply,
    validation: Supply,
    seed: int,
    compute: ComputeSettings,
    section: str,
    told: Told,
) -> _Running:
    """Task and optimiser on the device, in the memory order that the device likes."""
    if compute.channels_last:
        task.to(memory_format=torch.channels_last)
    optimizer = recipes.optimizer(recipe, task, section=section, fused=compute.precision != "fp16")
    module, stepper = fabric.setup(torch.compile(task) if compute.compile else task, optimizer)
    task.prepare(fabric.device, compute.channels_last)
    steps = training.count // recipe.batch_size
    return _Running(
        fabric=fabric,
        task=task,
        module=module,
        optimizer=optimizer,
        stepper=stepper,
        schedule=recipes.scheduler(recipe, optimizer, max(1, steps)),
        average=Average(task.network, recipe.ema) if recipe.ema is not None else None,
        recipe=recipe,
        training=training,
        validation=validation,
        normalises=[
            Normalise(preprocessing, fabric.device, channels_last=compute.channels_last)
            for preprocessing in task.preprocessings
        ],
        steps=steps,
        seed=seed,
        section=section,
        told=told,
    )


def _epoch(run: _Running, epoch: int, shown: dict[str, float | str]) -> Row:
    """One pass over the training images; its row of the history, still without validation."""
    fabric, task, recipe, steps = run.fabric, run.task, run.recipe, run.steps
    ranks, rank, device = fabric.world_size, fabric.global_rank, fabric.device
    local = recipe.batch_size // ranks
    # All processes share one order; each takes its part of every batch.
    order = order_of(run.training.count, run.seed, epoch)[: steps * recipe.batch_size]
    mine = np.ascontiguousarray(order.reshape(steps, ranks, local)[:, rank].ravel())
    views = Augmentation(
        recipe.augment, seed=run.seed, epoch=epoch, rank=rank, device=device, fill=run.normalises[0].fill
    )
    torch.manual_seed(seed_of(run.seed, epoch, "network", rank))  # dropout, stochastic depth
    # Every step's factors at once, (steps, losses): one transfer an epoch.
    planned = [task.factors(epoch - 1 + step / steps) for step in range(steps)]
    factors = torch.tensor(planned, dtype=torch.float32, device=device).reshape(steps, len(task.names))
    precise = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(3 + len(task.names), dtype=precise, device=device)
    rate = float(run.optimizer.param_groups[0]["lr"])
    which = torch.from_numpy(mine).to(device)
    task.train()
    for step, (images, labels) in enumerate(run.training.batches(local, order=mine)):
        view = views(images, labels)
        inputs = _inputs(view.images, run.normalises[: task.views])
        answers, losses = run.module(view.labels, which[step * local : (step + 1) * local], *inputs)
        label_loss = task.label_weight * view.cross_entropy(answers, recipe.label_smoothing)
        weighted = losses * factors[step]
        loss = label_loss + weighted.sum()
        run.stepper.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip_grad is not None:
            # error_if_nonfinite would read the norm back; the epoch's end finds what is not finite.
            fabric.clip_gradients(
                run.module,
                run.stepper,
                max_norm=recipe.clip_grad,
                error_if_nonfinite=False,
            )
        run.stepper.step()
        updates = (epoch - 1) * steps + step + 1
        run.schedule.step_update(updates)
        if run.average is not None:
            run.average.update(updates)
        right = (answers.detach().argmax(dim=1) == view.labels).float().mean()
        sums += torch.cat([torch.stack([loss, label_loss, right]), weighted]).detach()
        run.told.update(updates * recipe.batch_size, epoch=epoch, **shown)
    means = (fabric.all_reduce(sums, reduce_op="sum") / (ranks * steps)).tolist()
    row = {
        "epoch": float(epoch),
        "learning_rate": rate,
        "train_loss": means[0],
        "train_top1": 100.0 * means[2],
        # In the order of docs/reference/artefacts.md; validation fills them in.
        "val_loss": math.nan,
        "val_top1": math.nan,
    }
    if task.names:
        row["loss_labels"] = means[1]
        row |= {f"loss_{name}": mean for name, mean in zip(task.names, means[3:], strict=True)}
    return row


def _inputs(images: Tensor, normalises: list[Normalise]) -> list[Tensor]:
    """The same view for each network by its own constants; made once where they are equal."""
    made = [normalises[0](images)]
    for normalise in normalises[1:]:
        same = normalise.preprocessing == normalises[0].preprocessing
        made.append(made[0] if same else normalise(images))
    return made


def _validate(run: _Running, average: Average | None) -> tuple[float, float]:
    """(top-1 in per cent, loss) of the weights that would be kept. The first process judges: its
    running statistics are those that are kept.
    """
    found = (0.0, 0.0)
    if run.fabric.is_global_zero:
        with average.in_place() if average is not None else contextlib.nullcontext():
            answers = judge.logits(
                run.task.network,
                run.validation,
                run.normalises[0],
                batch_size=max(run.recipe.batch_size, JUDGED_AT_ONCE),
                autocast=run.fabric.autocast,
            )
        found = judge.top1_and_loss(answers, torch.from_numpy(run.validation.labels))
    top1, loss = run.fabric.broadcast(found)
    return top1, loss


def _weights(run: _Running, average: Average | None) -> Weights:
    """A copy on the CPU of what would be kept now."""
    source = average.values if average is not None else run.task.network.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in source.items()}


def _state(run: _Running, epoch: int, kept: Kept, history: list[Row]) -> State:
    """All that the next epoch depends on. Generators are not among it: each epoch seeds its own."""
    return {
        "epoch": epoch,
        "task": run.task.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "precision": run.fabric.strategy.precision.state_dict(),
        "average": run.average.values if run.average is not None else None,
        "kept": {
            "epoch": kept.epoch,
            "val_top1": kept.val_top1,
            "val_loss": kept.val_loss,
            "weights": kept.weights,
        },
        "history": history,
    }


def _restore(run: _Running, state: State) -> tuple[int, Kept, list[Row]]:
    """Puts the state in force; (epochs done, what is kept so far, their history)."""
    run.task.load_state_dict(state["task"])
    run.optimizer.load_state_dict(state["optimizer"])
    if state["precision"]:
        run.fabric.strategy.precision.load_state_dict(state["precision"])
    if run.average is not None:
        run.average.load(state["average"])
    epoch = int(state["epoch"])
    # The schedule is a function of the updates done.
    run.schedule.step_update(epoch * run.steps)
    run.told.progress.note(f"goes on after epoch {epoch} of {run.recipe.epochs}")
    run.told.update(epoch * run.steps * run.recipe.batch_size, epoch=epoch)
    return epoch, Kept(**state["kept"]), list(state["history"])


def _refuse_divergence(run: _Running, epoch: int, row: Row) -> None:
    if math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]):
        return
    recipe, section = run.recipe, run.section
    hint = f"--set {section}.learning_rate={recipe.learning_rate / 10:g}"
    if recipe.clip_grad is None:
        hint += f", or --set {section}.clip_grad=1.0"
    if "mixed" in str(run.fabric.strategy.precision.precision):
        hint += ", or --set compute.precision=fp32"
    which = "training" if not math.isfinite(row["train_loss"]) else "validation"
    raise StageError(
        f"The training diverged: the {which} loss is not finite in epoch {epoch} of {recipe.epochs}",
        where=section,
        why=f"training loss {row['train_loss']:g}, validation loss {row['val_loss']:g} "
        f"at learning rate {row['learning_rate']:g}",
        hint=hint,
    )
