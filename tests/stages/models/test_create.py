from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError
from stages.models.create import check, create
from stages.models.settings import ModelSettings
from tests.errors import raises


def build(
    model: str, classes: int = 5, channels: int = 1, image_size: int = 32, **keys: Any
) -> torch.nn.Module:
    return create(
        ModelSettings(model=model, **keys), classes=classes, channels=channels, image_size=image_size
    )


def check_model(
    model: str, *, classes: int | None = 5, channels: int | None = 1, image_size: int = 32, **keys: Any
) -> None:
    check(ModelSettings(model=model, **keys), classes=classes, channels=channels, image_size=image_size)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("mobilenetv3_small_050", 1),
        ("vit_tiny_patch16_224", 3),
        ("torchvision/mobilenet_v3_small", 1),
        ("torchvision/resnet18", 3),
    ],
)
def test_a_network_maps_the_images_to_the_classes(model: str, channels: int) -> None:
    torch.manual_seed(0)
    network = build(model, channels=channels)
    assert network.training
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 5)
    check_model(model, channels=channels)
    check_model(model, classes=None, channels=None)


@pytest.mark.parametrize("model", ["resnet18", "torchvision/resnet18"])
def test_equal_seeds_give_equal_weights(model: str) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(7)
        networks.append(build(model, stem="small").state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_timm_s_own_initialisation_is_kept() -> None:
    torch.manual_seed(3)
    expected = timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=5).state_dict()
    torch.manual_seed(3)
    state = build("mobilenetv3_small_050").state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_checking_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    check_model("mobilenetv3_small_050", stem="small")
    assert torch.equal(torch.randn(3), expected)


def test_options_reach_the_constructor() -> None:
    network = build("vit_tiny_patch16_224", options={"patch_size": 4, "depth": 2, "drop_rate": 0.3})
    assert network.patch_embed.grid_size == (8, 8)  # type: ignore[union-attr]
    assert len(network.blocks) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "near"), [("resnet81", "resnet18"), ("torchvision/resnet81", "torchvision/resnet18")]
)
def test_an_unknown_name_is_answered_with_near_ones(model: str, near: str) -> None:
    for look in (build, check_model):
        with pytest.raises(ModelError) as caught:
            look(model)
        assert near in caught.value.why


@pytest.mark.parametrize("model", ["hf-hub:somebody/something", "torchvision/", "local-dir:/nowhere"])
def test_sources_other_than_names_are_refused(model: str) -> None:
    with raises(ModelError, what="no architecture"):
        check_model(model)


def test_an_option_that_the_architecture_does_not_take() -> None:
    with pytest.raises(ModelError) as caught:
        check_model("resnet18", options={"patch_sise": 4})
    assert "patch_sise" in caught.value.where
    assert "patch_sise" in caught.value.why


@pytest.mark.parametrize("option", ["num_classes", "in_chans", "pretrained", "features_only"])
def test_an_option_that_has_another_key(option: str) -> None:
    with raises(ModelError, what=option):
        check_model("resnet18", options={option: 1})


def test_a_network_that_is_no_classifier() -> None:
    with raises(ModelError, what="not a classifier"):
        check_model("vit_tiny_patch16_224", options={"global_pool": "", "depth": 1})
    with pytest.raises(ModelError) as caught:
        check_model("resnet18", options={"global_pool": ""})
    assert "options" in caught.value.hint


@pytest.mark.parametrize("model", ["torchvision/alexnet", "inception_v3"])
def test_images_too_small_for_the_architecture(model: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(model)
    assert "32" in caught.value.what
    assert "data.image_size" in caught.value.hint


def test_a_download_that_fails_is_one_plain_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Nothing is fetched: an empty cache, and both libraries told to stay offline.
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    for model in ("resnet18.tv_in1k", "torchvision/squeezenet1_1"):
        with pytest.raises(ModelError) as caught:
            build(model, pretrained=True)
        assert "checkpoint" in caught.value.hint
        assert "pretrained: false" in caught.value.hint


def test_pretrained_weights_that_nobody_publishes() -> None:
    unpublished = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with raises(ModelError, what="no pretrained weights"):
        check_model(unpublished, pretrained=True)


def test_torchvision_s_pretrained_network_is_given_this_head_and_these_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision

    # The network that would be downloaded, with random weights in place of trained ones.
    trained = torchvision.models.squeezenet1_1(weights=None)
    original = torchvision.models.get_model

    def published(name: str, weights: str | None = None, **options: Any) -> torch.nn.Module:
        return trained if weights == "DEFAULT" else original(name, weights=weights, **options)

    monkeypatch.setattr("torchvision.models.get_model", published)
    colours = torch.rand(1, 3, 64, 64)
    first = trained.features[0].weight.detach().clone()
    network = build("torchvision/squeezenet1_1", pretrained=True, image_size=64)
    weight = network.get_parameter("features.0.weight")
    assert torch.allclose(weight[:, 0], first.sum(1))
    assert network(colours[:, :1].expand(2, -1, -1, -1)).shape == (2, 5)


# --- checkpoints


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return build("mobilenetv3_small_050", stem="small").state_dict()


def files(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, Path]:
    parallel = {"module." + name: tensor for name, tensor in weights.items()}
    untracked = {name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")}
    save_file(weights, folder / "plain.safetensors")
    save_file(untracked, folder / "untracked.safetensors")
    torch.save(weights, folder / "plain.pt")
    torch.save({"state_dict": parallel, "epoch": 3}, folder / "parallel.pth")
    torch.save({"model": {"_orig_mod." + n: t for n, t in parallel.items()}}, folder / "compiled.ckpt")
    return {file.stem: file for file in folder.iterdir()}


@pytest.mark.long
def test_every_common_form_of_checkpoint_is_taken(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    written = files(tmp_path, weights)
    assert len(written) == 4
    for file in tmp_path.iterdir():
        keys: dict[str, Any] = {"stem": "small", "checkpoint": str(file)}
        check_model("mobilenetv3_small_050", **keys)
        state = build("mobilenetv3_small_050", **keys).state_dict()
        for name, tensor in weights.items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(state[name], tensor), (file.name, name)


@pytest.mark.long
def test_a_checkpoint_of_another_architecture_names_the_tensors(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    keys: dict[str, Any] = {"checkpoint": str(tmp_path / "w.safetensors")}
    for look in (build, check_model):
        with pytest.raises(ModelError) as caught:
            look("resnet18", **keys)
        assert "missing (conv1.weight" in caught.value.why
        assert " unexpected (" in caught.value.why
        assert "and" in caught.value.why
        with raises(ModelError, what="another number of classes") as caught:
            look("mobilenetv3_small_050", classes=7, stem="small", **keys)
        assert "5 outputs" in caught.value.why
        assert "7 classes" in caught.value.why
        with pytest.raises(ModelError) as caught:
            look("mobilenetv3_small_050", channels=3, stem="small", **keys)
        assert "of another shape (conv_stem.weight (16, 1, 3, 3) for (16, 3, 3, 3))" in caught.value.why
    # The classes are not known yet: nothing to compare.
    check_model("mobilenetv3_small_050", classes=None, channels=None, stem="small", **keys)


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    class Callback:
        pass

    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save({"model": {}, "args": Path("x")}, tmp_path / "code.pt")
    for name, word in {
        "absent.pt": "is missing",
        "torn.safetensors": "cannot be read",
        "torn.pt": "checkpoint",
        "empty.pt": "no state dict",
        "code.pt": "more than tensors",
    }.items():
        for look in (build, check_model):
            with raises(ModelError, what=word) as caught:
                look("resnet18", checkpoint=str(tmp_path / name))
            assert name in caught.value.where
