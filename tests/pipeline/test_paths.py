"""Files that a profile names with `~` or `$VARIABLES`: the plan and the stages read the same file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.devices.transport import transport
from pipeline.errors import DataError, ModelError, StageError, UsageError
from pipeline.hashing import hash_file
from pipeline.paths import expand
from stages.data.missing import root_of
from stages.devices.settings import DeviceSettings
from stages.measuring import reference_bundle
from stages.models import weights
from stages.models.create import check, create
from stages.models.settings import ModelSettings
from stages.training.checkpoint import weights_digest
from tests.errors import raises
from tests.pipeline.command_line import call, document
from tests.stages.measuring.test_reference_bundle import CARD, manifest, packed

SPELLINGS = [
    "$KD_WEIGHTS/t.pt",
    "${KD_WEIGHTS}/t.pt",
    "~/weights/t.pt",
    "weights/t.pt",
    "$KD_TILDE/weights/t.pt",
]
TINY = """\
name: tiny
compute: {device: cpu, threads: 1}
data: {name: digits, image_size: 8, test: 0.3}
teacher: {model: cifar_resnet8}
student: {model: cifar_resnet8}
train: {epochs: 1, batch_size: 64, fraction: 0.1}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home folder and a working folder, each with a file of weights."""
    for name, value in variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    model = create(ModelSettings(model="cifar_resnet8"), classes=10, channels=1, image_size=8)
    torch.save(model.state_dict(), tmp_path / "weights" / "t.pt")
    return tmp_path


def variables(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "KD_WEIGHTS": str(home / "weights"), "KD_TILDE": "~", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_network_starts_from_the_file_that_the_plan_reads(home: Path, spelling: str) -> None:
    settings = ModelSettings(model="cifar_resnet8", checkpoint=spelling)
    check(settings, classes=10, channels=1, image_size=8)
    model = create(settings, classes=10, channels=1, image_size=8)
    saved = torch.load(home / "weights" / "t.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert weights_digest(settings) == hash_file(home / "weights" / "t.pt")
    assert expand(spelling).absolute() == home / "weights" / "t.pt"


def test_a_line_trains_from_a_checkpoint_with_a_variable(home: Path) -> None:
    (home / "tiny.yaml").write_text(TINY)
    words = ("tiny.yaml", "--set", "teacher.checkpoint=$KD_WEIGHTS/t.pt", "--json")
    done = call(home, "train", *words, **variables(home))
    assert done.returncode == 0, done.stderr
    assert document(done)["stages"][0]["status"] == "ran"


@pytest.mark.parametrize(
    ("path", "why"), [("$KD_NOT_SET/t.pt", "$KD_NOT_SET is not set"), ("~nobody-here/t.pt", "~nobody-here")]
)
def test_a_path_that_cannot_be_expanded_is_refused_everywhere(home: Path, path: str, why: str) -> None:
    (home / "tiny.yaml").write_text(TINY)
    for words in ([f"teacher.checkpoint={path}"], ["data.name=npz", f"data.root={path}"]):
        sets = [part for word in words for part in ("--set", word)]
        done = call(home, "plan", "tiny.yaml", *sets, **variables(home))
        assert done.returncode == 2, done.stderr
        assert why in done.stderr
        assert "Traceback" not in done.stderr
    with pytest.raises(ModelError) as model:
        create(ModelSettings(model="cifar_resnet8", checkpoint=path), classes=10, channels=1, image_size=8)
    with pytest.raises(DataError) as data:
        root_of(SimpleNamespace(name="npz", root=path))
    with pytest.raises(StageError) as bundle:
        reference_bundle.subjects(path, CARD, home / "images.npy", home / "work")
    assert all(why in error.value.why for error in (model, data, bundle))


def test_the_bundle_to_compare_with_is_expanded(home: Path) -> None:
    packed(home / "weights", manifest(good="onnxruntime"))
    for spelling in ("$KD_WEIGHTS/mine.tar.zst", "~/weights/mine.tar.zst", "$KD_TILDE/weights/mine.tar.zst"):
        assert list(reference_bundle.subjects(spelling, CARD, home / "images.npy", home / "work")) == ["good"]


def test_ssh_s_files_of_a_device_are_expanded(home: Path) -> None:
    files = {"identity": "$KD_WEIGHTS/key", "config": "~/config"}
    device = DeviceSettings(url="ssh://board", **files)
    words = transport("board", device.model_dump()).command(["true"])
    assert words[words.index("-i") + 1] == str(home / "weights" / "key")
    assert words[words.index("-F") + 1] == str(home / "config")
    with raises(UsageError, where="devices.board.identity"):
        transport("board", {**device.model_dump(), "identity": "$KD_NOT_SET/key"}).command(["true"])


def test_a_dollar_in_the_name_of_a_file_needs_no_variable(home: Path) -> None:
    (home / "weights" / "a$b.pt").touch()
    assert expand("weights/a$b.pt") == Path("weights/a$b.pt")
    assert weights.checkpoint_path("weights/a$b.pt") == Path("weights/a$b.pt")
