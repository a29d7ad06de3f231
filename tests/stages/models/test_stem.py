from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from stages.models.create import create
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises

FAMILIES = [
    "resnet18",
    "resnet18d",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
    "regnetx_002",
    "convnext_atto",
    "mobilevit_xxs",
    "ghostnet_100",
    "repvgg_a0",
    "lcnet_050",
    "hgnetv2_b0",
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/regnet_y_400mf",
]


def network_of(model: str, stem: str = "small", channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({"model": model, "stem": stem})
    return create(settings, classes=3, channels=channels, image_size=32)


@pytest.mark.long
@pytest.mark.parametrize("model", FAMILIES)
def test_the_map_grows_by_four_and_all_else_stays(model: str) -> None:
    networks = {stem: network_of(model, stem).eval() for stem in ("standard", "small")}
    sizes = {}
    for stem, size in (("standard", 128), ("small", 32)):
        with torch.no_grad():
            features = Observer(networks[stem])(torch.randn(1, 1, size, size))
        assert features.logits.isfinite().all()
        sizes[stem] = features.map.shape
    # Without the first two halvings, an image of 32 pixels has the map of an image of 128 pixels with them.
    assert sizes["small"] == sizes["standard"]
    shapes = {
        stem: [tuple(tensor.shape[:2]) for tensor in network.state_dict().values() if tensor.ndim]
        for stem, network in networks.items()
    }
    assert shapes["small"] == shapes["standard"]


def test_a_resnet_s_stem_is_that_of_its_cifar_form() -> None:
    network = network_of("resnet18")
    conv = network.conv1
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    assert conv.weight.shape == (64, 1, 3, 3)
    assert isinstance(network.maxpool, nn.Identity)
    # Kaiming normal, fan out.
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.15)


def test_a_deep_stem_keeps_its_convolutions() -> None:
    first = network_of("resnet18d").conv1[0]  # type: ignore[index]
    assert isinstance(first, nn.Conv2d)
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))


def test_both_branches_of_a_block_lose_their_stride() -> None:
    stage = network_of("regnetx_002").s1
    assert isinstance(stage, nn.Module)
    strides = [layer.stride for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    assert set(strides) == {(1, 1)}


def test_the_network_comes_back_in_training_mode_with_untouched_statistics() -> None:
    network = network_of("mobilenetv3_small_050")
    assert all(module.training for module in network.modules())
    assert all(not buffer.any() for name, buffer in network.named_buffers() if name.endswith("running_mean"))


def test_it_does_not_depend_on_the_image_size() -> None:
    states = []
    for size in (16, 48):
        torch.manual_seed(0)
        settings = ModelSettings(model="mobilenetv2_050", stem="small")
        states.append(create(settings, classes=3, channels=3, image_size=size).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        "vit_tiny_patch16_224",
        "resmlp_12_224",
        "maxvit_pico_rw_256",
        "convmixer_768_32",
        "torchvision/vit_b_16",
    ],
)
def test_architectures_without_such_a_stem_say_what_to_do(model: str) -> None:
    with raises(ModelError, what="has no small stem") as caught:
        network_of(model)
    assert "patch_size" in caught.value.hint
