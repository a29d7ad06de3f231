from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.cifar.registry import NETWORKS
from stages.models.cifar.resnet import PaddedShortcut
from stages.models.create import architecture_names, check, create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from stages.onnx_files.exporting import export_network
from tests.stages.models import cifar_references as references

# Parameters for 100 classes; the final map at 32 pixels; channels of the stages.
PUBLISHED: dict[str, tuple[int, tuple[int, int, int], tuple[int, ...]]] = {
    "cifar_resnet8": (83_892, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet14": (181_108, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet20": (278_324, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet32": (472_756, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet44": (667_188, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet56": (861_620, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet110": (1_736_564, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_resnet8x4": (1_233_540, (256, 8, 8), (32, 64, 128, 256)),
    "cifar_resnet32x4": (7_433_860, (256, 8, 8), (32, 64, 128, 256)),
    "cifar_resnet50": (23_705_252, (2048, 4, 4), (64, 256, 512, 1024, 2048)),
    "cifar_wrn_16_2": (703_284, (128, 8, 8), (16, 32, 64, 128)),
    "cifar_wrn_40_1": (569_780, (64, 8, 8), (16, 16, 32, 64)),
    "cifar_wrn_40_2": (2_255_156, (128, 8, 8), (16, 32, 64, 128)),
    "cifar_vgg8": (3_965_028, (512, 4, 4), (64, 128, 256, 512, 512)),
    "cifar_vgg13": (9_462_180, (512, 4, 4), (64, 128, 256, 512, 512)),
    "cifar_mobilenetv2_half": (812_836, (1280, 2, 2), (16, 12, 16, 48, 160)),
    "cifar_shufflenetv1": (949_258, (960, 4, 4), (24, 240, 480, 960)),
    "cifar_shufflenetv2": (1_355_528, (1024, 4, 4), (24, 116, 232, 464)),
}

ONE_EACH = [
    "cifar_resnet8",
    "cifar_wrn_16_2",
    "cifar_vgg8",
    "cifar_mobilenetv2_half",
    "cifar_shufflenetv1",
    "cifar_shufflenetv2",
]


def network_of(name: str, classes: int = 100, channels: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create(
        ModelSettings(model=name, options=options), classes=classes, channels=channels, image_size=32
    )


def trained(network: nn.Module) -> nn.Module:
    """Set the norms like after training: initially they hardly do anything."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return network.eval()


def images(count: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(4))


def test_every_network_is_among_timm_s_and_kdpipe_s() -> None:
    assert set(PUBLISHED) == set(NETWORKS)
    assert set(NETWORKS) <= set(architecture_names())
    assert set(NETWORKS) <= set(timm.list_models("cifar_*"))
    assert timm.create_model("cifar_resnet8", num_classes=0)(images()).shape == (2, 64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = network_of(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name][0]


def test_the_published_numbers_follow_from_the_papers_tables() -> None:
    counted = dict(references.parameter_counts())
    assert len(counted) == 14
    assert counted == {name: PUBLISHED[name][0] for name in counted}


@pytest.mark.parametrize(("name", "blocks"), [("cifar_wrn_16_2", 2), ("cifar_wrn_40_1", 6)])
def test_wide_resnets_compute_the_papers_equations(name: str, blocks: int) -> None:
    network = trained(network_of(name)).double()
    with torch.no_grad():
        actual, expected = (
            network(images().double()),
            references.wide_resnet(network.state_dict(), images().double(), blocks),
        )
    assert torch.allclose(actual, expected, atol=1e-9)


def test_shufflenet_computes_the_papers_equations() -> None:
    network = trained(network_of("cifar_shufflenetv1")).double()
    with torch.no_grad():
        actual, expected = (
            network(images().double()),
            references.shufflenetv1(network.state_dict(), images().double()),
        )
    assert torch.allclose(actual, expected, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["cifar_vgg8", "cifar_vgg13", "cifar_resnet50", "cifar_shufflenetv2", "cifar_mobilenetv2_half"],
)
def test_networks_compute_what_torchvision_s_of_the_same_paper_do(name: str) -> None:
    network = trained(network_of(name))
    if name == "cifar_mobilenetv2_half":
        _pass_the_expansion_of_one(network)
    twin = references.torchvision_twin(name).eval()
    own = [tensor for path, tensor in network.state_dict().items() if not path.startswith("blocks0.0.expand")]
    theirs = twin.state_dict()
    twin.load_state_dict(dict(zip(theirs, own, strict=True)))
    with torch.no_grad():
        assert torch.allclose(network(images()), twin(images()), atol=1e-4, rtol=1e-4)


def _pass_the_expansion_of_one(network: nn.Module) -> None:
    """Make the 1x1 convolution that expands by 1 an identity: torchvision does not have it."""
    convolution, norm = (
        network.get_submodule("blocks0.0.expand.0"),
        network.get_submodule("blocks0.0.expand.1"),
    )
    nn.init.dirac_(convolution.weight)  # type: ignore[arg-type]
    for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - 1e-5}.items():
        nn.init.constant_(getattr(norm, name), value)


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_map_that_feeds_the_pooling_and_the_stages_are_shown(name: str) -> None:
    _, final, channels = PUBLISHED[name]
    network = trained(network_of(name))
    observer = Observer(network, Needs(stages=tuple(range(len(channels))), ends=True))
    with torch.no_grad():
        features = observer(images())
        assert torch.equal(features.logits, network(images()))
    assert features.map.shape == (2, *final)
    assert torch.allclose(features.map.mean((2, 3)), features.embedding, atol=1e-4)
    assert float(features.map.min()) >= 0.0
    assert tuple(stage.shape[1] for stage in features.stages) == channels
    info = network.feature_info
    for stage, facts in zip(features.stages, info, strict=True):  # type: ignore[arg-type]
        assert stage.shape[2] == 32 // facts["reduction"]
        assert stage.shape[1] == facts["num_chs"]
    sides = [end.shape[2] for end in features.ends]
    assert sides == sorted(set(sides), reverse=True)
    spec = observer.spec(32, 3)
    assert spec.head_is_linear_on_pooled
    assert spec.map == final


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_map_that_was_shown_is_not_written_over(name: str) -> None:
    network: Any = trained(network_of(name))
    whole = network.forward_intermediates(images(), intermediates_only=True)
    for number, seen in enumerate(whole):
        (alone,) = network.forward_intermediates(
            images(), indices=[number], intermediates_only=True, stop_early=True
        )
        assert torch.equal(seen, alone)
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    sum(seen.sum() for seen in whole).backward()


def test_intermediates_are_counted_as_timm_counts_them() -> None:
    network: Any = trained(network_of("cifar_wrn_16_2"))
    with torch.no_grad():
        final, inner = network.forward_intermediates(images(), indices=[-1, 1], norm=True)
        assert [map.shape[1] for map in inner] == [32, 128]
        assert torch.equal(inner[-1], final)
        assert len(network.forward_intermediates(images(), indices=2, intermediates_only=True)) == 2
        _, raw = network.forward_intermediates(images(), indices=[-1])
        assert float(raw[0].min()) < 0.0
        assert torch.equal(network.forward_head(final), network(images()))
        assert torch.equal(network.forward_head(final, pre_logits=True), final.mean((2, 3)))
    for wrong in ([4], [-5], 5, []):
        with pytest.raises(ValueError, match="stages are 0 to 3"):
            network.forward_intermediates(images(), indices=wrong)
    with pytest.raises(ValueError, match="NLC"):
        network.forward_intermediates(images(), output_fmt="NLC")
    network.reset_classifier(7)
    assert network.get_classifier() is network.fc
    assert network(images()).shape == (2, 7)


@pytest.mark.long
@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("size", [8, 28, 33])
def test_grey_images_of_other_sizes(name: str, size: int) -> None:
    check(ModelSettings(model=name), classes=10, channels=1, image_size=size)
    network = network_of(name, classes=10, channels=1)
    logits = network(images(count=3, channels=1, size=size))
    logits.sum().backward()
    assert logits.shape == (3, 10)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"shortcut": "pad"}),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ONE_EACH),
    ],
)
def test_the_exported_graph_gives_the_same_logits(name: str, options: dict[str, Any]) -> None:
    network = trained(network_of(name, **options))
    card = {
        "model": name,
        "input": "float32_nchw",
        "classes": [str(number) for number in range(100)],
        "preprocessing": {"image_size": 32, "channels": 3},
    }
    exported = export_network(network, card, role="student", opset=20, batch_max=64)
    session = onnxruntime.InferenceSession(exported.model.SerializeToString())
    (logits,) = session.run(None, {session.get_inputs()[0].name: images(5).numpy()})
    with torch.no_grad():
        expected = network(images(5)).numpy()
    assert exported.unread == ()
    assert np.allclose(logits, expected, atol=1e-3 * expected.std())


def test_the_shortcut_without_parameters() -> None:
    shortcut = PaddedShortcut(2, 5, 2)
    image = torch.arange(18.0).reshape(1, 2, 3, 3)
    expected = torch.zeros(1, 5, 2, 2)
    expected[0, 1] = torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    expected[0, 2] = torch.tensor([[9.0, 11.0], [15.0, 17.0]])
    assert torch.equal(shortcut(image), expected)
    sizes = {}
    for depth in (20, 32, 44, 56):
        network = network_of(f"cifar_resnet{depth}", classes=10, shortcut="pad")
        sizes[depth] = sum(parameter.numel() for parameter in network.parameters())
    assert sizes == {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"options": {"shortcut": "none"}}, "conv or pad"),
        ({"options": {"depth": 20}}, "depth"),
        ({"stem": "small"}, "already made for images of 32 pixels"),
    ],
)
def test_what_these_networks_do_not_take(keys: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(ModelSettings(model="cifar_resnet8", **keys), classes=10, channels=3, image_size=32)
    assert word in caught.value.why
