from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import DataError, ModelError, UsageError
from stages import train
from stages.models import card as cards
from stages.training import checkpoint
from tests.stages.training import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = tiny.context(tmp_path_factory.mktemp("teacher"), tiny.settings("train"))
    train.run(context)
    return context.output


def test_the_artefact_is_as_documented(trained: Path) -> None:
    assert set(tiny.contents(trained)) == {"model.safetensors", "model.json", "history.csv"}
    facts = json.loads((trained / "model.json").read_text())
    assert facts["role"] == "teacher"
    assert facts["model"] == "test_resnet"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["epochs"] == 3
    assert facts["preprocessing"]["image_size"] == 16
    with (trained / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "learning_rate", "train_loss", "train_top1", "val_loss", "val_top1"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    best_row = rows[facts["best_epoch"] - 1]
    assert float(best_row["val_top1"]) == pytest.approx(facts["val_top1"], abs=1e-3)
    weights = load_file(trained / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    network, card = cards.load(trained)
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_metrics_report_accuracy_and_speed(tmp_path: Path) -> None:
    metrics = train.run(tiny.context(tmp_path, tiny.settings("train", train={"epochs": 1})))
    assert metrics["best_epoch"] == 1
    assert metrics["device"] == "cpu"
    assert metrics["precision"] == "fp32"
    assert metrics["bottleneck"] == "computing"
    assert metrics["images_per_s"] > 0
    assert metrics["seconds_per_epoch"] > 0
    json.dumps(metrics)


def test_twice_the_same_is_bit_identical_and_nothing_global_stays(tmp_path: Path, trained: Path) -> None:
    state = (torch.get_num_threads(), torch.random.get_rng_state())
    again = tiny.context(tmp_path, tiny.settings("train"))
    train.run(again)
    assert tiny.contents(again.output) == tiny.contents(trained)
    assert torch.get_num_threads() == state[0]
    assert torch.equal(torch.random.get_rng_state(), state[1])


def test_other_settings_train_another_network(tmp_path: Path, trained: Path) -> None:
    other = tiny.context(tmp_path, tiny.settings("train", seed=1))
    train.run(other)
    assert tiny.contents(other.output)["model.safetensors"] != tiny.contents(trained)["model.safetensors"]


@pytest.mark.long
def test_no_epoch_keeps_the_checkpoints_weights(tmp_path: Path, trained: Path) -> None:
    file = trained / "model.safetensors"
    settings = tiny.settings("train", teacher={"checkpoint": str(file)}, train={"epochs": 0})
    train.check(settings)
    context = tiny.context(tmp_path, settings)
    metrics = train.run(context)
    assert (context.output / "model.safetensors").read_bytes() == file.read_bytes()
    assert metrics["best_epoch"] == 0
    assert metrics["val_top1"] == pytest.approx(json.loads((trained / "model.json").read_text())["val_top1"])
    assert (context.output / "history.csv").read_text().count("\n") == 1


def test_a_checkpoint_is_trained_on(tmp_path: Path, trained: Path) -> None:
    file = str(trained / "model.safetensors")
    context = tiny.context(
        tmp_path, tiny.settings("train", teacher={"checkpoint": file}, train={"learning_rate": 1e-5})
    )
    train.run(context)
    first = next(csv.DictReader((context.output / "history.csv").open()))
    assert float(first["train_loss"]) < 2.0


CONTRARY: dict[str, tuple[dict[str, Any], type[UsageError], str]] = {
    "model": ({"teacher": {"model": "resnet81"}}, ModelError, "resnet81"),
    "optimizer": ({"train": {"optimizer": "adamm"}}, UsageError, "adamm"),
    "epochs": ({"train": {"epochs": 0}}, UsageError, "random"),
    "batch": ({"train": {"batch_size": 500}}, UsageError, "larger than the training set"),
    "devices": ({"compute": {"devices": 2}, "train": {"batch_size": 33}}, UsageError, "33"),
    "data": ({"data": {"name": "idx", "root": "/nowhere/at/all"}}, DataError, "/nowhere/at/all"),
    "absent": ({"teacher": {"checkpoint": "/nowhere/w.safetensors"}}, ModelError, "/nowhere/w.safetensors"),
}


@pytest.mark.parametrize("case", CONTRARY)
def test_faults_are_found_before_anything_runs(case: str) -> None:
    if case == "devices" and (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one core")
    changes, kind, message = CONTRARY[case]
    with pytest.raises(kind) as caught:
        train.check(tiny.settings("train", **changes))
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(10, 3)}, file)
    with pytest.raises(ModelError):
        train.check(tiny.settings("train", teacher={"checkpoint": str(file)}))


def test_a_sound_profile_passes_the_check_and_changes_nothing() -> None:
    state = torch.random.get_rng_state()
    train.check(tiny.settings("train"))
    assert torch.equal(torch.random.get_rng_state(), state)


KILLED = """
import sys
from pathlib import Path
from stages import train
from stages.training import checkpoint
from tests.stages.training import tiny

checkpoint.EVERY_S = 0.0  # a checkpoint after every epoch, although epochs are short

class Printing:
    def update(self, done, total, unit="", **figures):
        print(figures["epoch"], flush=True)
    def note(self, text):
        pass

train.run(tiny.context(Path(sys.argv[1]), tiny.settings("train", train={"epochs": 9}), progress=Printing()))
"""


def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Kill a real process with SIGKILL, then run the stage again with the same work folder."""
    root = Path(train.__file__).parent.parent
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 3:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert list((folder / "work").glob("epoch-*.pt"))

    (folder / "output").rmdir()
    recorder = tiny.Recorder()
    short = tiny.settings("train", train={"epochs": 9})
    resumed = tiny.context(folder, short, progress=recorder)
    train.run(resumed)
    assert any("training resumed after epoch" in note for note in recorder.notes)
    undisturbed = tiny.context(tmp_path / "undisturbed", short)
    train.run(undisturbed)
    assert tiny.contents(resumed.output) == tiny.contents(undisturbed.output)


@pytest.mark.long
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    with pytest.raises(tiny.Stopped):
        train.run(tiny.context(tmp_path, tiny.settings("train", seed=9), progress=tiny.Recorder(200)))
    assert list((tmp_path / "work").glob("epoch-*.pt"))
    (tmp_path / "output").rmdir()
    recorder = tiny.Recorder()
    context = tiny.context(tmp_path, tiny.settings("train"), progress=recorder)
    train.run(context)
    assert "another training" in recorder.notes[0]
    assert tiny.contents(context.output) == tiny.contents(trained)
