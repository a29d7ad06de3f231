"""The training loop of teacher, student, baseline and fine-tune.

Everything random is seeded by (seed, epoch). A checkpoint at the end of an epoch therefore needs no
state of a generator, and a resumed training ends like an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Literal

import torch
from lightning_fabric import Fabric

from pipeline.errors import StageError
from pipeline.stage import Silent
from stages.training.augmentation import Augmentation
from stages.training.batch_size import refuse_large_batch, refuse_unequal_shares
from stages.training.checkpoint import Checkpoints, State
from stages.training.epoch import TrainingRun, train_epoch, validate
from stages.training.moving_average import MovingAverage
from stages.training.optimizers import create_optimizer
from stages.training.outcome import BestEpoch, Outcome, Row, Weights
from stages.training.progress import ProgressSlice, images_seen
from stages.training.schedules import create_scheduler
from stages.training.settings import Schedule
from stages.training.supply import Normalise, Supply
from stages.training.tasks import Task

READING_SHARE = 0.3
"""If a training waits for images for a larger share of its time, reading them is the bottleneck."""


def fit(
    fabric: Fabric,
    task: Task,
    training: Supply,
    validation: Supply,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: str = "adamw",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    decay_norms: bool = False,
    momentum: float = 0.9,
    schedule: Schedule = "cosine",
    warmup_epochs: float = 0.0,
    decay_epochs: Sequence[int] = (),
    decay_rate: float = 0.1,
    min_learning_rate: float = 0.0,
    label_smoothing: float = 0.0,
    clip_grad: float | None = None,
    ema: float | None = None,
    keep: Literal["best", "last"] = "best",
    augment: Augmentation = Augmentation(),  # noqa: B008 - frozen
    channels_last: bool = True,
    compile: bool = False,
    seed: int = 0,
    section: str = "train",
    progress: ProgressSlice | None = None,
    checkpoints: Checkpoints | None = None,
    more_follows: bool = False,
) -> Outcome:
    """Train `task` and leave the weights of the result in `task.network`.

    Defaults are those of the profile (`RecipeSettings`, `ComputeSettings`).

    Example:
        >>> import timm
        >>> from lightning_fabric import Fabric
        >>> from stages.data.load import load
        >>> from stages.data.settings import DataSettings
        >>> from stages.training.supply import Supply
        >>> from stages.training.tasks import SupervisedTask
        >>> data = load(DataSettings(name="digits", image_size=16))
        >>> network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
        >>> fabric = Fabric(accelerator="cpu", devices=1)
        >>> outcome = fit(
        ...     fabric,
        ...     SupervisedTask(network, data.preprocessing),
        ...     Supply(data.train, fabric.device),
        ...     Supply(data.validation, fabric.device),
        ...     epochs=2,
        ...     learning_rate=3e-3,
        ...     augment=Augmentation(pad=1),
        ... )
        >>> [row["epoch"] for row in outcome.history]
        [1.0, 2.0]
        >>> outcome.val_top1 > 50.0
        True

    Args:
        fabric: Device, precision and processes.
        task: The network, and what it learns from.
        training: Training images.
        validation: Validation images; they decide which epoch is the best.
        epochs: Passes over the training images; 0 leaves the starting weights.
        batch_size: Images a step, over all devices. The last, incomplete batch of an epoch is left out.
        optimizer: timm's name of the optimiser.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        decay_norms: Whether weight decay applies to biases and norms too.
        momentum: Momentum, for optimisers that have one.
        schedule: How the learning rate decreases: cosine, multistep, step or constant.
        warmup_epochs: Length of the linear warm-up, in epochs.
        decay_epochs: Epochs after which multistep decays; for step the first entry is the interval.
        decay_rate: Factor at each decay.
        min_learning_rate: Last learning rate of cosine.
        label_smoothing: Share of the target that is spread over all classes, 0..1.
        clip_grad: Largest norm of the gradient; None for no limit.
        ema: Decay of an exponential moving average of the weights, which then is the result; or None.
        keep: Which epoch is the result: "best" (top-1 on the validation images) or "last".
        augment: Random changes of the training images.
        channels_last: Whether images and weights are in NHWC order in memory.
        compile: Whether the training step is compiled with torch.compile.
        seed: Seed of views, orders and dropout. The network's weights are the caller's.
        section: The recipe's section of the profile, for messages.
        progress: Where progress is reported; None for nowhere.
        checkpoints: Where checkpoints are written, and resumed from; None for no checkpoints.
        more_follows: Whether the stage continues after this training, so that the last epoch is worth a
            checkpoint.

    Raises:
        UsageError: The batch does not fit the training images or the devices, or the optimiser or
            the schedule is unknown.
        StageError: A loss is not finite.
    """
    refuse_unequal_shares(batch_size, fabric.world_size, section)
    if epochs:
        refuse_large_batch(batch_size, training.count, section)
    if progress is None:
        progress = ProgressSlice(Silent(), total=images_seen(epochs, batch_size, training.count))
    if channels_last:
        task.to(memory_format=torch.channels_last)
    plain_optimizer = create_optimizer(
        task,
        optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        decay_norms=decay_norms,
        momentum=momentum,
        # Under fp16 a fused optimiser unscales the gradients itself, and Fabric then refuses to clip them.
        fused=fabric.strategy.precision.precision != "16-mixed",
        section=section,
    )
    module, fabric_optimizer = fabric.setup(torch.compile(task) if compile else task, plain_optimizer)
    task.prepare(fabric.device, channels_last)
    steps = training.count // batch_size
    run = TrainingRun(
        fabric=fabric,
        task=task,
        module=module,
        optimizer=plain_optimizer,
        fabric_optimizer=fabric_optimizer,
        schedule=create_scheduler(
            plain_optimizer,
            max(1, steps),
            epochs=epochs,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            decay_epochs=decay_epochs,
            decay_rate=decay_rate,
            min_learning_rate=min_learning_rate,
            section=section,
        ),
        average=MovingAverage(task.network, ema) if ema is not None else None,
        training=training,
        validation=validation,
        normalises=[
            Normalise(preprocessing, fabric.device, channels_last=channels_last)
            for preprocessing in task.preprocessings
        ],
        augment=augment,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        label_smoothing=label_smoothing,
        clip_grad=clip_grad,
        seed=seed,
        section=section,
        progress=progress,
    )
    return _train(run, keep, learning_rate, checkpoints, more_follows)


def _train(
    run: TrainingRun,
    keep: Literal["best", "last"],
    learning_rate: float,
    checkpoints: Checkpoints | None,
    more_follows: bool,
) -> Outcome:
    """Train epoch by epoch, from the newest checkpoint on."""
    fabric, task = run.fabric, run.task
    if run.epochs and run.augment.is_identity:
        task.cache_features(
            run.training,
            run.normalises[-1],
            fabric.autocast,
            lambda done: run.progress.update(0, teacher=done),
        )
    state = checkpoints.load() if checkpoints is not None else None
    epochs_done, best, history = (0, BestEpoch(), []) if state is None else _restore(run, state)
    figures: dict[str, float | str] = {}
    durations_s: list[float] = []
    waited_before_s = run.training.waited_s

    for epoch in range(epochs_done + 1, run.epochs + 1):
        started = time.perf_counter()
        row = train_epoch(run, epoch, figures)
        durations_s.append(time.perf_counter() - started)
        top1, loss = validate(run, run.average)
        row |= {"val_loss": loss, "val_top1": top1}
        _refuse_divergence(run, epoch, row, learning_rate)
        history.append(row)
        if keep == "last" or (top1, -loss) > (best.val_top1, -best.val_loss):
            best = BestEpoch(epoch, top1, loss, _weights(run, run.average))
        figures = {"val_top1": round(top1, 2)}
        run.progress.update(epoch * run.steps * run.batch_size, epoch=epoch, **figures)
        if checkpoints is not None and fabric.is_global_zero:
            due = more_follows if epoch == run.epochs else checkpoints.due()
            if due:
                checkpoints.save(epoch, _state(run, epoch, best, history))

    if best.epoch == 0:
        best = BestEpoch(0, *validate(run, None), _weights(run, None))
    last_weights = _weights(run, run.average if run.epochs else None)
    task.network.load_state_dict(best.weights)
    seconds = median(durations_s) if durations_s else 0.0
    return Outcome(
        best_epoch=best.epoch,
        val_top1=best.val_top1,
        val_loss=best.val_loss,
        history=history,
        images_per_s=run.steps * run.batch_size / seconds if seconds else 0.0,
        seconds_per_epoch=seconds,
        bottleneck=_bottleneck(durations_s, run.training.waited_s - waited_before_s),
        last_val_top1=history[-1]["val_top1"] if history else best.val_top1,
        last_weights=last_weights,
    )


def _weights(run: TrainingRun, average: MovingAverage | None) -> Weights:
    """Return a copy of the network's weights, or of their average, on the CPU."""
    source = average.values if average is not None else run.task.network.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in source.items()}


def _bottleneck(durations_s: list[float], waited_s: float) -> str:
    """Return what limits the speed: reading, computing, or nothing if no epoch was trained."""
    if not durations_s:
        return ""
    return "reading" if waited_s / sum(durations_s) > READING_SHARE else "computing"


def _state(run: TrainingRun, epoch: int, best: BestEpoch, history: list[Row]) -> State:
    """Return all that the next epoch depends on. Generators are not part of it: each epoch seeds its own."""
    return {
        "epoch": epoch,
        "task": run.task.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "precision": run.fabric.strategy.precision.state_dict(),
        "average": run.average.values if run.average is not None else None,
        "kept": {
            "epoch": best.epoch,
            "val_top1": best.val_top1,
            "val_loss": best.val_loss,
            "weights": best.weights,
        },
        "history": history,
    }


def _restore(run: TrainingRun, state: State) -> tuple[int, BestEpoch, list[Row]]:
    """Load a checkpoint's state; return the epochs done, the best one so far, and the history."""
    run.task.load_state_dict(state["task"])
    run.optimizer.load_state_dict(state["optimizer"])
    if state["precision"]:
        run.fabric.strategy.precision.load_state_dict(state["precision"])
    if run.average is not None:
        run.average.load(state["average"])
    epoch = int(state["epoch"])
    # The schedule is a function of the updates done.
    run.schedule.step_update(epoch * run.steps)
    run.progress.note(f"training resumed after epoch {epoch} of {run.epochs}")
    run.progress.update(epoch * run.steps * run.batch_size, epoch=epoch)
    return epoch, BestEpoch(**state["kept"]), list(state["history"])


def _refuse_divergence(run: TrainingRun, epoch: int, row: Row, peak_rate: float) -> None:
    """Raise StageError if a loss of the epoch is not finite."""
    if math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]):
        return
    hint = f"--set {run.section}.learning_rate={peak_rate / 10:g}"
    if run.clip_grad is None:
        hint += f", or --set {run.section}.clip_grad=1.0"
    if "mixed" in str(run.fabric.strategy.precision.precision):
        hint += ", or --set compute.precision=fp32"
    which = "training" if not math.isfinite(row["train_loss"]) else "validation"
    raise StageError(
        f"The training diverged: the {which} loss is not finite in epoch {epoch} of {run.epochs}",
        where=run.section,
        why=f"training loss {row['train_loss']:g}, validation loss {row['val_loss']:g} "
        f"at learning rate {row['learning_rate']:g}",
        hint=hint,
    )
