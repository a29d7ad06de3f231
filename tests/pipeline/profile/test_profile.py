"""Profiles: defaults, files, layers and overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ProfileError, UsageError
from pipeline.profile.loading import load, shipped_profiles
from tests.pipeline.profile_texts import BASE, ROOT, faults, only_fault, write

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# What a valid profile says


def test_every_default_is_written_out() -> None:
    loaded = load(write(BASE))
    assert loaded.path == Path("p.yaml")
    assert loaded.name == loaded.sections["name"] == "p"
    assert loaded.files == (Path("p.yaml"),)
    assert loaded.overrides == ()
    assert loaded.value("train.epochs") == 20
    assert loaded.value("train.augment.flip") is False
    assert loaded.value("distill.methods.0.name") == "msdcrd"
    assert loaded.value("targets.1.name") == "onnxruntime-int8"
    assert loaded.value("teacher.checkpoint") is None
    assert loaded.value("no.such.key") is None
    assert loaded.value("targets.9") is None
    assert json.loads(json.dumps(dict(loaded.sections))) == loaded.sections
    assert list(loaded.sections)[:5] == ["name", "seed", "compute", "data", "teacher"]


def test_numbers_take_the_type_of_their_setting() -> None:
    loaded = load(write(BASE + "train: {weight_decay: 0, learning_rate: 1e-2}\n"))
    assert repr(loaded.value("train.weight_decay")) == "0.0"
    assert loaded.value("train.learning_rate") == 0.01


def test_what_changes_no_artefact_is_not_keyed() -> None:
    text = BASE.replace("name: digits", "name: idx\n  root: /somewhere\n  workers: 7")
    loaded = load(write(text), ["teacher.checkpoint=w.safetensors"])
    assert loaded.value("data.root") == "/somewhere"
    keyed = loaded.keyed
    assert not {"root", "workers", "memory_limit_gb"} & set(keyed["data"])
    assert "checkpoint" not in keyed["teacher"]
    assert keyed["data"]["name"] == "idx"
    assert keyed["distill"]["methods"] == loaded.sections["distill"]["methods"]
    assert keyed["train"] == loaded.sections["train"]


def test_places_show_where_a_value_was_set() -> None:
    write(BASE, "base.yaml")
    loaded = load(write("extends: base.yaml\ntrain:\n  epochs: 3\n"), ["seed=7", "distill.epochs=2"])
    assert loaded.place("train.epochs") == "p.yaml:3:3"
    assert loaded.place("data.name") == "base.yaml:2:3"
    assert loaded.place("seed") == loaded.place("distill.epochs") == "--set"
    assert loaded.place("train.batch_size") == loaded.place("name") == "default"


def test_settings_are_typed_and_only_those_asked_for() -> None:
    settings = load(write(BASE)).settings(["seed", "name", "train", "distill", "targets"])
    assert settings.seed == 0
    assert settings.name == "p"
    assert settings.train.augment.flip is False
    assert settings.distill.methods[0].tau_sample > 0
    assert settings.targets[0].runtime == "onnxruntime"
    assert not hasattr(settings, "data")


def test_a_file_name_that_is_no_profile_name_is_tidied() -> None:
    assert load(write(BASE, "my profile (2).yaml")).name == "my-profile-2-"


@pytest.mark.parametrize("path", shipped_profiles(), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path: Path) -> None:
    assert load(path).name == path.stem


# Finding the file


def test_a_profile_is_found_by_stem_and_among_the_shipped_ones() -> None:
    write(BASE, "sub/mine.yaml")
    assert load("sub/mine").path == Path("sub/mine.yaml")
    shipped = ROOT / "profiles" / "resnet_to_mobilenet.yaml"
    assert shipped in shipped_profiles()
    for name in ("resnet_to_mobilenet", "resnet_to_mobilenet.yaml", "profiles/resnet_to_mobilenet.yaml"):
        assert load(name).path == shipped


def test_a_missing_file_names_the_nearest() -> None:
    write(BASE, "cifar.yaml")
    with pytest.raises(UsageError) as caught:
        load("cifer.yaml")
    assert "cifar.yaml" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        load("resnet_to_mobilnet")
    assert "resnet_to_mobilenet" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["", ".", "no/such/folder/p.yaml", "a\0b", "x" * 5000, "./resnet_to_mobilenet"]
)
def test_names_of_no_file_are_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name)
    assert not isinstance(caught.value, ProfileError)


# Layers


def test_extends_merges_groups_and_replaces_the_rest() -> None:
    write(BASE + "train: {epochs: 3, batch_size: 16}\ntargets: [onnxruntime-fp32]\n", "bases/a.yaml")
    write("train: {batch_size: 32}\nseed: 4\n", "bases/b.yaml")
    write("extends: [bases/a.yaml, bases/b]\ntrain: {momentum: 0.5}\ntargets: [openvino-fp32]\n", "c.yaml")
    loaded = load("c.yaml")
    assert loaded.value("train.epochs") == 3
    assert loaded.value("train.batch_size") == 32
    assert loaded.value("train.momentum") == 0.5
    assert [target["name"] for target in loaded.value("targets")] == ["openvino-fp32"]
    assert loaded.files == (Path("c.yaml"), Path("bases/a.yaml"), Path("bases/b.yaml"))


def test_extends_a_shipped_profile_and_relative_to_the_extending_file() -> None:
    write("extends: resnet_to_mobilenet\nname: mine\ntrain: {epochs: 1}\n", "deep/base.yaml")
    loaded = load(write("extends: ../deep/base.yaml\n", "other/p.yaml"))
    assert loaded.value("teacher.model") == "resnet18"
    assert loaded.value("train.epochs") == 1
    assert loaded.name == "mine"
    assert loaded.files[1] == Path("deep/base.yaml")


def test_a_group_whose_name_changes_is_replaced() -> None:
    write(BASE.replace("name: digits", "name: idx\n  root: /here\n  classes: [a, b]"), "base.yaml")
    loaded = load(write("extends: base.yaml\ndata: {name: digits}\n"))
    assert loaded.value("data.name") == "digits"
    same = load(write("extends: base.yaml\ndata: {name: idx, image_size: 28}\n"))
    assert same.value("data.root") == "/here"


def test_faults_of_an_extended_file_point_into_it() -> None:
    write(BASE + "train:\n  epochs: -3\n  epocs: 2\n", "base.yaml")
    all_faults = faults(write("extends: base.yaml\nseed: x\n"))
    assert [fault.place for fault in all_faults] == ["p.yaml:2:7", "base.yaml:6:11", "base.yaml:7:3"]


def test_profiles_that_extend_each_other_name_the_chain() -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: c.yaml\n", "b.yaml")
    write("extends: a.yaml\n", "c.yaml")
    (fault,) = faults("a.yaml")
    assert fault.place == "c.yaml:1:10"
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in fault.message


def test_a_base_may_be_shared_by_many() -> None:
    write(BASE, "l0.yaml")
    for level in range(1, 30):
        write(f"extends: [l{level - 1}.yaml, l{level - 1}.yaml]\n", f"l{level}.yaml")
    assert len(load("l29.yaml").files) == 30


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("extends: resnet_to_mobilnet\n", "p.yaml:1:10", "there is no profile 'resnet_to_mobilnet'"),
        ("extends: 5\n", "p.yaml:1:10", "expected a profile's path"),
        ("extends: [a: b]\n", "p.yaml:1:11", "expected a profile's path"),
        ("", "p.yaml:1:1", "the profile is empty"),
        ("# nothing\n", "p.yaml:1:1", "the profile is empty"),
        ("- a\n", "p.yaml:1:1", "found a list"),
        ("just text\n", "p.yaml:1:1", "found 'just text'"),
        ("data: [\n", "p.yaml:2:1", "not YAML"),
    ],
)
def test_files_that_are_no_profiles(text: str, place: str, words: str) -> None:
    where, message, _ = only_fault(text)
    assert where == place
    assert words in message


# Overrides


def test_overrides_set_values_anywhere() -> None:
    overrides = [
        "distill.epochs=5",
        "distill.methods.0.weight=0.5",
        "targets=[onnxruntime-fp32, openvino-int8]",
        "targets.1=openvino-fp32",
        "targets.2=openvino-int8",
        "train.augment={flip: true}",
        "report.title=a=b # c",
        "compute.threads=",
        "name=mine",
    ]
    loaded = load(write(BASE + "train: {augment: {pad: 4}}\n"), overrides)
    assert loaded.value("distill.epochs") == 5
    assert loaded.value("distill.methods.0.weight") == 0.5
    assert loaded.value("distill.methods.0.name") == "msdcrd"
    names = [target["name"] for target in loaded.value("targets")]
    assert names == ["onnxruntime-fp32", "openvino-fp32", "openvino-int8"]
    assert loaded.value("train.augment.pad") == 0
    assert loaded.value("report.title") == "a=b"
    assert loaded.value("compute.threads") is None
    assert loaded.name == "mine"
    assert loaded.overrides == tuple(overrides)


@pytest.mark.parametrize("flip", [False, True])
def test_an_overridden_kind_empties_its_group_wherever_its_name_is(flip: bool) -> None:
    overrides = ["data.name=idx", "data.root=/there"]
    text = BASE.replace("name: digits", "name: torchvision").replace("torchvision", "mnist\n  download: true")
    loaded = load(write(text), overrides[::-1] if flip else overrides)
    assert loaded.value("data.root") == "/there"
    assert "download" not in loaded.value("data")


@pytest.mark.parametrize(
    ("override", "where", "words"),
    [
        ("seed", "--set seed", "no '='"),
        ("=5", "--set", "no key"),
        ("train..epochs=5", "--set train..epochs", "no key"),
        ("train.epochs=-3", "--set train.epochs", "found -3, expected a whole number of at least 0"),
        ("train.epocs=3", "--set train.epocs", "unknown key 'epocs' in train"),
        ("train.epochs.x=3", "--set train.epochs.x", "train.epochs is 4, not a group of keys"),
        ("targets.7=x", "--set targets.7", "a list of 2"),
        ("targets.x=y", "--set targets.x", "a list of 2"),
        ("seed=[", "--set seed", "not YAML"),
        ("seed={a: 1, a: 2}", "--set seed", "appears twice"),
        ("extends=x", "--set extends", "cannot be set here"),
        ("seed=\udcff", "--set seed", "not UTF-8"),
        ("se\udcff=1", "--set se\udcff", "is not a key"),
    ],
)
def test_faults_of_an_override_name_it(override: str, where: str, words: str) -> None:
    text = BASE + "train: {epochs: 4}\ntargets: [onnxruntime-fp32, onnxruntime-int8]\n"
    (fault,) = faults(write(text), override)
    assert (fault.place, fault.line) == (where, 0)
    assert words in fault.message
