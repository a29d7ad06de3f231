from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline.errors import ModelError
from stages.data.preprocessing import SCALE, Preprocessing
from stages.models.card import ModelCard, load, rebuild, save
from stages.models.create import create
from stages.models.settings import ModelSettings

CARD = ModelCard(
    role="student",
    model="mobilenetv3_small_050",
    options={"drop_rate": 0.1},
    stem="small",
    classes=("zero", "eins", "zwölf"),
    parameters=1,
    best_epoch=7,
    epochs=8,
    val_top1=99.1,
    preprocessing=Preprocessing(32, 1, "bilinear", True, SCALE, (0.3,), (0.37,)),
)


def network() -> nn.Module:
    torch.manual_seed(2)
    settings = ModelSettings(model=CARD.model, options=dict(CARD.options), stem="small")
    model = create(settings, classes=3, channels=1, image_size=32)
    with torch.no_grad():
        model(torch.randn(4, 1, 32, 32))  # statistics that are not those of a fresh network
    return model


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model = network()
    save(tmp_path, model, CARD)
    state = torch.get_rng_state()
    loaded, card = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert card == CARD
    assert not loaded.training
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


def test_equal_weights_give_equal_bytes_whatever_they_were_stored_as(tmp_path: Path) -> None:
    model = network()
    variants = [model, network().to(memory_format=torch.channels_last), network().double()]
    for number, variant in enumerate(variants):
        (tmp_path / str(number)).mkdir()
        save(tmp_path / str(number), variant, CARD)
    for name in ("model.safetensors", "model.json"):
        assert len({(tmp_path / str(number) / name).read_bytes() for number in range(len(variants))}) == 1
    with safe_open(tmp_path / "0" / "model.safetensors", "pt") as opened:
        dtypes = {opened.get_tensor(key).dtype for key in opened.keys()}  # noqa: SIM118 - not a mapping
    assert dtypes == {torch.float32, torch.int64}


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    save(tmp_path, network(), CARD)
    facts = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    documented = (Path(__file__).parents[3] / "docs" / "reference" / "artefacts.md").read_text(
        encoding="utf-8"
    )
    example = documented.split("`model.json`:\n\n```json\n")[1].split("```")[0]
    assert list(facts) == list(json.loads(example))
    assert facts["classes"] == ["zero", "eins", "zwölf"]
    # Other stages add keys of their own.
    facts["input"] = "uint8_nhwc"
    assert ModelCard.from_json(facts) == CARD


def test_the_architecture_is_rebuilt_without_its_weights() -> None:
    shapes = [tensor.shape for tensor in rebuild(CARD).state_dict().values()]
    assert shapes == [tensor.shape for tensor in network().state_dict().values()]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_folder_is_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, network(), CARD)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert name in caught.value.where
