"""A checkpoint whose classifier has another name than the network's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError
from stages.models import weights
from stages.models.create import check, create
from stages.models.settings import ModelSettings
from tests.errors import raises


def network_of(model: str, classes: int = 5) -> torch.nn.Module:
    return create(ModelSettings(model=model), classes=classes, channels=3, image_size=32)


def renamed(state: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new) if name.startswith(old) else name: t for name, t in state.items()}


@pytest.mark.parametrize(
    ("model", "own", "theirs"),
    [
        ("cifar_resnet8", "fc.", "linear."),
        ("cifar_resnet8", "fc.", "classifier.0."),
        ("torchvision/mobilenet_v3_small", "classifier.3.", "head."),
    ],
)
def test_it_is_read(tmp_path: Path, model: str, own: str, theirs: str) -> None:
    torch.manual_seed(1)
    state = network_of(model).state_dict()
    file = tmp_path / "theirs.safetensors"
    save_file(renamed(state, own, theirs), file)
    settings = ModelSettings(model=model, checkpoint=str(file))
    check(settings, classes=5, channels=3, image_size=32)
    read = create(settings, classes=5, channels=3, image_size=32).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    with raises(ModelError, what="another number of classes") as caught:
        create(settings, classes=6, channels=3, image_size=32)
    assert "5 outputs" in caught.value.why


def test_what_is_more_than_another_name_is_refused_by_the_file_s_own_names() -> None:
    network = network_of("cifar_resnet8")
    state = renamed(dict(network.state_dict()), "fc.", "linear.")
    more = state | {"projector.weight": torch.zeros(2)}
    less = {name: tensor for name, tensor in state.items() if name != "linear.bias"}
    other = renamed(state, "bn1.", "norm1.")
    for wrong, word in ((more, "projector.weight"), (less, "linear.weight"), (other, "norm1.weight")):
        with pytest.raises(ModelError) as caught:
            weights.load_into(network, wrong, where="a file")
        assert word in caught.value.why
