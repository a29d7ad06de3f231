from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import StageError
from stages.data.load import DataSet, load
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.training import fabric
from stages.training.augmentation import Augmentation
from stages.training.checkpoint import Checkpoints
from stages.training.loop import fit
from stages.training.outcome import Outcome
from stages.training.progress import ProgressSlice, images_seen
from stages.training.settings import ComputeSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import SupervisedTask
from tests.stages.training import tiny

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
COMPUTE = ComputeSettings(device="cpu", precision="fp32", threads=1)
PER_EPOCH = 128
"""Images an epoch of `_fit`: four whole batches of 32 out of a tenth of the training images."""

RICH: dict[str, Any] = {
    "ema": 0.9,
    "clip_grad": 1.0,
    "label_smoothing": 0.1,
    "warmup_epochs": 1.0,
    "augment": Augmentation(pad=1, rotate_deg=5.0, erase=0.3, cutmix=0.5, mixup=0.2),
}


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load(tiny.settings("train").data)


def _fit(
    data: DataSet,
    *,
    progress: tiny.Recorder | None = None,
    work: Path | None = None,
    network: nn.Module | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    epochs: int = 3,
    batch_size: int = 32,
    fraction: float = 0.1,
    **recipe: Any,
) -> tuple[Outcome, nn.Module]:
    compute = fabric.resolve(COMPUTE)
    recorder = progress or tiny.Recorder()
    with fabric.reproducible(compute, seed):
        if network is None:
            model = ModelSettings(model="test_resnet", options=options or {})
            network = create(model, classes=10, channels=1, image_size=16)
        training = training_supply(data, CPU, fraction=fraction)
        total = images_seen(epochs, batch_size, training.count)
        outcome = fit(
            fabric.make(compute),
            SupervisedTask(network, data.preprocessing),
            training,
            Supply(data.validation, CPU),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            progress=ProgressSlice(recorder, total=total),
            checkpoints=Checkpoints(work, "same", recorder, every_s=0.0) if work is not None else None,
            **recipe,
        )
    return outcome, network


def _same(network: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())


def test_it_learns(data: DataSet) -> None:
    outcome, network = _fit(data, epochs=4, fraction=0.25, batch_size=16, learning_rate=3e-3)
    assert outcome.val_top1 > 70.0
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    assert outcome.images_per_s > 0
    assert not any(torch.isnan(value).any() for value in network.state_dict().values())


def test_equal_settings_give_equal_bits_and_another_seed_does_not(data: DataSet) -> None:
    outcome, first = _fit(data, options={"drop_rate": 0.2}, **RICH)
    repeated, second = _fit(data, options={"drop_rate": 0.2}, **RICH)
    assert _same(first, second)
    assert outcome.history == repeated.history
    _, third = _fit(data, options={"drop_rate": 0.2}, seed=1, **RICH)
    assert not _same(first, third)


@pytest.mark.parametrize("stopped_in_epoch", [2, 3])
@pytest.mark.parametrize("recipe", [RICH, {"optimizer": "sgd", "schedule": "step", "decay_epochs": [1]}])
def test_a_resumed_training_ends_like_an_undisturbed_one(
    data: DataSet, tmp_path: Path, recipe: dict[str, Any], stopped_in_epoch: int
) -> None:
    options = {"drop_rate": 0.2}
    whole, undisturbed = _fit(data, options=options, **recipe)
    stop = (stopped_in_epoch - 1) * PER_EPOCH + 32
    with pytest.raises(tiny.Stopped):
        _fit(data, work=tmp_path, progress=tiny.Recorder(stop), options=options, **recipe)
    again = tiny.Recorder()
    resumed, network = _fit(data, work=tmp_path, progress=again, options=options, **recipe)
    assert again.notes == [f"training resumed after epoch {stopped_in_epoch - 1} of 3"]
    assert again.updates[0][0] == (stopped_in_epoch - 1) * PER_EPOCH
    assert _same(network, undisturbed)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch


def test_the_best_epoch_is_kept_and_validation_alone_decides(data: DataSet) -> None:
    outcome, _ = _fit(data, epochs=4)
    best = max(outcome.history, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert outcome.best_epoch == best["epoch"]
    assert outcome.val_top1 == best["val_top1"]
    assert outcome.val_loss == best["val_loss"]


def test_the_network_holds_the_kept_epoch(data: DataSet) -> None:
    # A rate that rises hurts: the last epoch is not the best.
    recipe: dict[str, Any] = {"epochs": 3, "optimizer": "sgd", "schedule": "constant", "momentum": 0.0}
    best, network = _fit(data, learning_rate=0.3, keep="best", **recipe)
    last, other = _fit(data, learning_rate=0.3, keep="last", **recipe)
    assert last.best_epoch == 3
    assert best.history == last.history
    assert _same(network, other) == (best.best_epoch == 3)
    answers = _answers(network, data)
    assert 100.0 * (answers == data.validation.labels).mean() == pytest.approx(best.val_top1)


def _answers(network: nn.Module, data: DataSet) -> np.ndarray:
    facts = data.preprocessing
    images = data.validation.images.batch(np.arange(len(data.validation.labels)))
    shown = (images.astype(np.float32) * facts.scale - facts.mean[0]) / facts.std[0]
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(torch.from_numpy(shown).permute(0, 3, 1, 2).float())
    return np.asarray(logits.argmax(1).numpy())


def test_the_average_is_what_is_judged_and_kept(data: DataSet) -> None:
    plain, network = _fit(data, keep="last")
    averaged, slow = _fit(data, keep="last", ema=0.9)
    # The same training underneath...
    assert [row["train_loss"] for row in plain.history] == [row["train_loss"] for row in averaged.history]
    # ...but another result, and the figures are those of the result.
    assert not _same(network, slow)
    accuracy = 100.0 * (_answers(slow, data) == data.validation.labels).mean()
    assert accuracy == pytest.approx(averaged.history[-1]["val_top1"])


def test_divergence_names_the_epoch_and_the_remedy(data: DataSet) -> None:
    with pytest.raises(StageError) as caught:
        _fit(data, optimizer="sgd", learning_rate=1e30)
    assert "epoch 1 of 3" in caught.value.what
    assert "train.learning_rate=1e+29" in caught.value.hint
    assert "train.clip_grad" in caught.value.hint


def test_no_epoch_keeps_the_weights_and_judges_them(data: DataSet) -> None:
    network = create(ModelSettings(model="test_resnet"), classes=10, channels=1, image_size=16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outcome, same = _fit(data, network=network, epochs=0)
    assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    assert outcome.best_epoch == 0
    assert 0.0 <= outcome.val_top1 <= 100.0
    assert outcome.history == []


def test_progress_runs_from_nothing_to_all(data: DataSet) -> None:
    recorder = tiny.Recorder()
    _fit(data, progress=recorder, epochs=2)
    done = [entry[0] for entry in recorder.updates]
    assert done == sorted(done)
    assert done[-1] == recorder.updates[-1][1] == 2 * PER_EPOCH
    assert "val_top1" in recorder.updates[-1][2]
    assert recorder.updates[-1][2]["epoch"] == 2


def test_nothing_is_read_back_inside_an_epoch(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts `.item()` and `.tolist()`: on a GPU each would wait for the device."""
    reads: list[str] = []
    for name in ("item", "tolist"):
        real = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, _real: Any = real, _name: str = name) -> Any:
            reads.append(_name)
            return _real(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for fraction in (0.1, 0.2):  # 3 and 7 steps an epoch
        reads.clear()
        _fit(data, epochs=2, fraction=fraction, **{**RICH, "warmup_epochs": 0.0})
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0


def test_the_loss_of_the_first_step_is_the_cross_entropy(data: DataSet) -> None:
    outcome, _ = _fit(data, epochs=1, learning_rate=1e-12, weight_decay=0.0, label_smoothing=0.0)
    assert outcome.history[0]["train_loss"] == pytest.approx(math.log(10), rel=0.35)
    assert outcome.history[0]["learning_rate"] == pytest.approx(1e-12)


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(data: DataSet) -> None:
    plain, _ = _fit(data, epochs=1)
    compiled, _ = _fit(data, epochs=1, compile=True)
    assert compiled.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-3)
