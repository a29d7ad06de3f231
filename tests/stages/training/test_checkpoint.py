from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.training.checkpoint import Checkpoints, identity_of
from tests.stages.training import tiny


def _state(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "task": {"weight": torch.full((3,), float(epoch))}, "history": [{"a": 0.5}]}


def test_the_newest_state_comes_back_and_older_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new", "same", tiny.Recorder())
    assert checkpoints.load() is None
    checkpoints.save(9, _state(9))
    checkpoints.save(10, _state(10))
    state = checkpoints.load()
    assert state is not None
    assert state["epoch"] == 10
    assert torch.equal(state["task"]["weight"], torch.full((3,), 10.0))
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_noted_and_not_used(tmp_path: Path, damage: str) -> None:
    progress = tiny.Recorder()
    checkpoints = Checkpoints(tmp_path, "same", progress)
    checkpoints.save(1, _state(1))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"not a checkpoint")
    path.write_bytes(content)
    assert checkpoints.load() is None
    assert path.name in progress.notes[0]


def test_a_damaged_checkpoint_hides_no_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "same", tiny.Recorder())
    checkpoints.save(1, _state(1))
    (tmp_path / f"epoch-000002-{'0' * 64}.pt").write_bytes(b"half")
    state = checkpoints.load()
    assert state is not None
    assert state["epoch"] == 1


def test_a_checkpoint_of_another_training_is_noted_and_not_used(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "one", tiny.Recorder()).save(1, _state(1))
    progress = tiny.Recorder()
    assert Checkpoints(tmp_path, "other", progress).load() is None
    assert "another training" in progress.notes[0]


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    body = pickle.dumps(Evil())
    (tmp_path / f"epoch-000001-{hashlib.sha256(body).hexdigest()}.pt").write_bytes(body)
    assert Checkpoints(tmp_path, "same", tiny.Recorder()).load() is None
    assert not (tmp_path / "ran").exists()


def test_small_epochs_are_not_written_each(tmp_path: Path) -> None:
    rare = Checkpoints(tmp_path, "same", tiny.Recorder(), every_s=1000.0)
    assert not rare.due()
    assert Checkpoints(tmp_path, "same", tiny.Recorder(), every_s=0.0).due()


def test_identity_is_what_changes_the_result() -> None:
    base = identity_of(tiny.settings("train"))
    assert base == identity_of(tiny.settings("train", data={"workers": 1}))  # changes no pixel
    assert base != identity_of(tiny.settings("train", train={"learning_rate": 0.5}))
    assert base != identity_of(tiny.settings("train", train={"augment": {"pad": 1}}))
    assert base != identity_of(tiny.settings("train", seed=1))
    assert base != identity_of(tiny.settings("train"), weights="digest")
    kd = identity_of(tiny.settings("distill", distill={"methods": [{"name": "kd"}]}))
    hot = identity_of(tiny.settings("distill", distill={"methods": [{"name": "kd", "temperature": 9.0}]}))
    assert kd != hot
