from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.errors import Fault, ProfileError, UsageError
from pipeline.profile import LoadedProfile, load, shipped_profiles

ROOT = Path(__file__).resolve().parents[2]
BASE = """\
data:
  name: digits
teacher: {model: resnet18}
student: {model: mobilenetv3_small_050}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "p.yaml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def faults(path: str, *overrides: str) -> list[Fault]:
    with pytest.raises(ProfileError) as caught:
        load(path, overrides)
    return list(caught.value.faults)


def told(text: str, *overrides: str) -> list[tuple[str, str, str]]:
    return [(fault.place, fault.message, fault.hint) for fault in faults(write(text), *overrides)]


def one(text: str, *overrides: str) -> tuple[str, str, str]:
    (only,) = told(text, *overrides)
    return only


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


def test_places_tell_where_a_value_was_set() -> None:
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
    assert "cifar.yaml" in caught.value.mend
    with pytest.raises(UsageError) as caught:
        load("resnet_to_mobilnet")
    assert "resnet_to_mobilenet" in caught.value.mend


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
    found = faults(write("extends: base.yaml\nseed: x\n"))
    assert [fault.place for fault in found] == ["p.yaml:2:7", "base.yaml:6:11", "base.yaml:7:3"]


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
    found, message, _ = one(text)
    assert found == place
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
def test_an_overridden_kind_empties_its_group_wherever_its_name_stands(flip: bool) -> None:
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
        ("seed={a: 1, a: 2}", "--set seed", "said twice"),
        ("extends=x", "--set extends", "cannot be set here"),
        ("seed=\udcff", "--set seed", "not UTF-8"),
        ("se\udcff=1", "--set se\udcff", "is no key"),
    ],
)
def test_faults_of_an_override_name_it(override: str, where: str, words: str) -> None:
    text = BASE + "train: {epochs: 4}\ntargets: [onnxruntime-fp32, onnxruntime-int8]\n"
    (fault,) = faults(write(text), override)
    assert (fault.place, fault.line) == (where, 0)
    assert words in fault.message


# Faults of values and keys


def test_all_faults_at_once_in_order_of_place() -> None:
    text = BASE + (
        "train:\n"
        "  epocs: 5\n"
        "  pad: 3\n"
        "  schedule: cosin\n"
        "  batch_size: '5'\n"
        "  augment: {flip: yes, pad: 90}\n"
        "epochs: 3\n"
        "seed: 1.0\n"
        "seed: 2\n"
    )
    assert told(text, "export.opset=1") == [
        ("p.yaml:6:3", "unknown key 'epocs' in train", "did you mean 'epochs'?"),
        ("p.yaml:7:3", "unknown key 'pad' in train", "'pad' belongs under train.augment or distill.augment"),
        (
            "p.yaml:8:13",
            "train.schedule: found 'cosin', expected one of cosine, multistep, step, constant",
            "did you mean 'cosine'?",
        ),
        (
            "p.yaml:9:15",
            "train.batch_size: found '5', expected a whole number of at least 1",
            "write 5 without quotes",
        ),
        ("p.yaml:10:19", "train.augment.flip: found 'yes', expected true or false", "write true"),
        ("p.yaml:10:29", "train.augment.pad: found 90, expected a whole number from 0 to 64", ""),
        ("p.yaml:11:1", "unknown key 'epochs'", "'epochs' belongs under train or distill"),
        (
            "p.yaml:12:7",
            "seed: found 1.0, expected a whole number of at least 0 and below 2147483648",
            "write 1",
        ),
        ("p.yaml:13:1", "the key 'seed' is said twice; first in line 12", ""),
        ("--set export.opset", "export.opset: found 1, expected a whole number from 18 to 23", ""),
    ]


@pytest.mark.parametrize(
    ("lines", "place", "message", "hint"),
    [
        ("train:\n", "p.yaml:5:7", "train: found null, expected a group of keys", "leave the key out"),
        (
            "distill: {methods: [{name: msdcrd, layers: 5}]}",
            "p.yaml:5:44",
            "distill.methods.0.layers: found 5, expected a list of whole numbers or last",
            "write layers: [5]",
        ),
        (
            "distill: {methods: [{name: kdd}]}",
            "p.yaml:5:28",
            "distill.methods.0.name: found 'kdd', expected one of msdcrd, kd",
            "did you mean 'kd'?",
        ),
        (
            "distill: {methods: [{weight: 1}]}",
            "p.yaml:5:21",
            "distill.methods.0.name is missing, expected one of msdcrd, kd",
            "",
        ),
        (
            "distill: {methods: [kd]}",
            "p.yaml:5:21",
            "distill.methods.0: found 'kd', expected a group of keys with a name: one of msdcrd, kd",
            "write {name: kd}",
        ),
        (
            "distill: {methods: []}",
            "p.yaml:5:20",
            "distill.methods: found [], expected a list of groups of keys, each with a name, at least 1",
            "",
        ),
        (
            "targets: [onnxruntime-fp64]",
            "p.yaml:5:11",
            "targets.0: found 'onnxruntime-fp64', expected text of the form",
            "RUNTIME-PRECISION",
        ),
        (
            "measure: {batch_sizes: [1, x]}",
            "p.yaml:5:28",
            "measure.batch_sizes.1: found 'x', expected a whole number",
            "",
        ),
        ("report: {title: 5}", "p.yaml:5:17", "report.title: found 5, expected text or null", "in quotes"),
        ("compute: {compile: 1}", "p.yaml:5:20", "compute.compile: found 1, expected true or false", ""),
        ("seed: true", "p.yaml:5:7", "seed: found true, expected a whole number", ""),
        ("sead: 1", "p.yaml:5:1", "unknown key 'sead'", "did you mean 'seed'?"),
        ("Train: {}", "p.yaml:5:1", "unknown key 'Train'", "did you mean 'train'?"),
        ("learning-rate: 1", "p.yaml:5:1", "unknown key 'learning-rate'", "learning_rate'?"),
        ("xyzzy: 1", "p.yaml:5:1", "unknown key 'xyzzy'", "known here: extends, name, seed"),
        # rules that tie settings together point at the first key that their message names
        ("train:\n  schedule: step\n", "p.yaml:6:13", "train: schedule step needs decay_epochs", ""),
        ("build:\n  batch_opt: 64\n", "p.yaml:6:14", "build: batch_min <= batch_opt <= batch_max", ""),
        (
            "targets: [openvino-fp32, openvino-fp32]",
            "p.yaml:5:10",
            "targets name openvino-fp32 more than once",
            "",
        ),
        (
            "package: {targets: [openvino-fp32]}",
            "p.yaml:5:20",
            "package.targets has openvino-fp32, which targets does not: onnxruntime-fp32, onnxruntime-int8",
            "",
        ),
    ],
)
def test_a_fault_says_what_was_found_and_what_is_expected(
    lines: str, place: str, message: str, hint: str
) -> None:
    found, said, help_ = one(BASE + lines)
    assert found == place
    assert said.startswith(message)
    assert hint in help_
    assert bool(hint) == bool(help_)


def test_missing_keys_point_at_the_group_that_lacks_them() -> None:
    assert [
        (place, message.partition(" is missing")[0]) for place, message, _ in told("teacher: {stem: small}")
    ] == [
        ("p.yaml:1:1", "data"),
        ("p.yaml:1:1", "student"),
        ("p.yaml:1:10", "teacher.model"),
    ]


def test_an_unknown_kind_of_data_lists_the_known_ones() -> None:
    place, message, hint = one(BASE.replace("digits", "digts"))
    assert place == "p.yaml:2:9"
    assert message.startswith("data.name: found 'digts', expected one of digits, idx, npz")
    assert hint == "did you mean 'digits'?"


def test_a_key_of_another_kind_says_so() -> None:
    place, message, hint = one(BASE.replace("digits", "digits\n  root: x"))
    assert (place, message) == ("p.yaml:3:3", "unknown key 'root' in data")
    assert hint.startswith("'root' belongs under data with name idx, npz")


def test_a_misspelt_extends_is_one_fault() -> None:
    assert one("extnds: resnet_to_mobilenet\n")[2] == "did you mean 'extends'?"


def _keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        inner = [key for key in value if key not in ("options",)]
        return [(*path, key) for key in value] + [p for key in inner for p in _keys(value[key], (*path, key))]
    if isinstance(value, list):
        return [p for index, entry in enumerate(value) for p in _keys(entry, (*path, index))]
    return []


@hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_any_typo_in_a_known_key_is_one_fault_with_a_suggestion(data: st.DataObject) -> None:
    sections = json.loads(json.dumps(dict(load("resnet_to_mobilenet").sections)))
    path = data.draw(st.sampled_from(_keys(sections)))
    group = sections
    for step in path[:-1]:
        group = group[step]
    key = path[-1]
    at = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz"))
    typo = data.draw(
        st.sampled_from(
            [key[:at] + key[at + 1 :], key[:at] + letter + key[at + 1 :], key[:at] + letter + key[at:]]
        )
    )
    if typo in group:
        return
    group[typo] = group.pop(key)
    (fault,) = faults(write(json.dumps(sections)))
    assert fault.key == ".".join(map(str, (*path[:-1], typo)))
    assert fault.hint.startswith("did you mean") or "belongs" in fault.hint


# Plug-ins

PLUGIN = '''
from typing import Literal

from stages.data.settings import DataSettings
from stages.methods.settings import MethodSettings


class Moons(DataSettings):
    """Two moons."""

    name: Literal["moons"]
    noise: float = 0.1


class Attention(MethodSettings):
    name: Literal["attention"]
    power: int = 2


class Stray:
    pass
'''


def install(folder: Path, entry_points: str) -> None:
    (folder / "kdpipe_moons.py").write_text(PLUGIN)
    info = folder / "kdpipe_moons-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdpipe-moons\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "kdpipe_moons", raising=False)
    return folder


MINE = BASE.replace("digits", "moons\n  noise: 0.3") + "distill: {methods: [{name: kd}, {name: attention}]}\n"


def test_installed_kinds_and_methods_are_known(packages: Path, tmp_path: Path) -> None:
    install(
        packages,
        "[kdpipe.data]\nmoons = kdpipe_moons:Moons\nother = missing:Other\n"
        "[kdpipe.methods]\nattention = kdpipe_moons:Attention\n",
    )
    loaded = load(write(MINE), memo_folder=tmp_path / "memo")
    assert loaded.value("data.noise") == 0.3
    assert loaded.value("distill.methods.1.power") == 2
    settings = loaded.settings(["data", "distill"])
    assert type(settings.data).__name__ == "Moons"
    assert type(settings.distill.methods[0]).__name__ == "KdSettings"
    assert not (tmp_path / "memo").exists()  # what a package adds is not remembered
    place, message, _ = one(MINE.replace("noise: 0.3", "noise: x"))
    assert (place, message) == ("p.yaml:3:10", "data.noise: found 'x', expected a number")
    assert one(MINE.replace("moons\n  noise: 0.3", "mons"))[2] == "did you mean 'moons'?"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("kdpipe_moons:Stray", "not a subclass of stages.data.settings.DataSettings"),
        ("kdpipe_moons:Attention", "not a subclass of stages.data.settings.DataSettings"),
        ("no_such_module:Moons", "ModuleNotFoundError"),
        ("kdpipe_moons:Gone", "AttributeError"),
    ],
)
def test_a_broken_plugin_is_one_fault(packages: Path, value: str, words: str) -> None:
    install(packages, f"[kdpipe.data]\nmoons = {value}\n")
    place, message, _ = one(BASE.replace("digits", "moons"))
    assert place == "p.yaml:2:9"
    assert "kdpipe-moons 1.2" in message
    assert words in message


# Memory

CODE = """
import sys
from pathlib import Path
from pipeline.profile import load
loaded = load(sys.argv[1], sys.argv[3:], Path(sys.argv[2]))
heavy = sorted({"pydantic", "yaml"} & set(sys.modules))
print(loaded.value("train.epochs"), loaded.place("train.epochs"), *heavy)
"""


def in_a_process(path: str, memo: Path, *overrides: str, source: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE, path, str(memo), *overrides],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_remembered_profile_needs_neither_pydantic_nor_yaml(tmp_path: Path) -> None:
    memo = tmp_path / "store" / "memo"
    write(BASE + "train: {epochs: 3}\n", "base.yaml")
    path = write("extends: base.yaml\n")
    assert in_a_process(path, memo) == "3 base.yaml:5:9 pydantic yaml"
    assert in_a_process(path, memo) == "3 base.yaml:5:9"
    assert in_a_process(path, memo, "train.epochs=9") == "9 --set pydantic yaml"


def test_an_installed_kdpipe_brings_its_profiles_and_forgets_what_another_version_said(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "site-packages"
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", installed / "pipeline" / "profiles")
    place = installed / "pipeline" / "profiles" / "resnet_to_mobilenet.yaml"
    heavy = " pydantic yaml"
    for expected in (heavy, ""):
        said = in_a_process("profiles/resnet_to_mobilenet.yaml", tmp_path / "memo", source=installed)
        assert said.split(" ", 1)[1].startswith(f"{place}:")
        assert said.endswith(heavy) == bool(expected)
    declarations = installed / "stages" / "data" / "settings.py"
    declarations.write_text(declarations.read_text() + "# changed\n")
    assert in_a_process("resnet_to_mobilenet", tmp_path / "memo", source=installed).endswith(heavy)


def memos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_a_memo_says_the_same_as_reading(tmp_path: Path) -> None:
    first = load("resnet_to_mobilenet", ["seed=3"], tmp_path / "memo")
    (memo,) = memos(tmp_path / "memo")
    written = memo.stat().st_mtime_ns
    again = load("resnet_to_mobilenet", ["seed=3"], tmp_path / "memo")
    assert memo.stat().st_mtime_ns == written
    assert again == first == load("resnet_to_mobilenet", ["seed=3"])
    assert again.settings(["train"]) == first.settings(["train"])


def test_a_memo_holds_only_while_every_file_is_as_it_was(tmp_path: Path) -> None:
    def epochs() -> Any:
        return load("p.yaml", memo_folder=tmp_path / "memo").value("train.epochs")

    write(BASE + "train: {epochs: 3}\n", "sub/base.yaml")
    write("extends: sub/base\n")
    assert [epochs(), epochs()] == [3, 3]
    write(BASE + "train: {epochs: 4}\n", "sub/base.yaml")
    assert [epochs(), epochs()] == [4, 4]
    write(BASE + "train: {epochs: 5}\n", "sub/base")  # now stands before sub/base.yaml
    assert epochs() == 5
    Path("sub/base").unlink()
    Path("sub/base.yaml").unlink()
    with pytest.raises(ProfileError):
        epochs()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"0\n{}", None])
def test_a_damaged_memo_is_ignored_and_replaced(tmp_path: Path, damage: bytes | None) -> None:
    whole = load(write(BASE), memo_folder=tmp_path / "memo")
    (memo,) = memos(tmp_path / "memo")
    content = memo.read_bytes()
    memo.write_bytes(content.replace(b'"epochs": 20', b'"epochs": 21') if damage is None else damage)
    assert load("p.yaml", memo_folder=tmp_path / "memo") == whole
    assert memo.read_bytes() == content


def test_a_wrong_profile_leaves_no_trace(tmp_path: Path) -> None:
    path = write(BASE + "train: {epochs: -1}\n")
    with pytest.raises(ProfileError):
        load(path, memo_folder=tmp_path / "store" / "memo")
    assert not (tmp_path / "store").exists()


def test_a_memo_folder_that_cannot_be_written_to_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(load(write(BASE), memo_folder=tmp_path / "file" / "memo"), LoadedProfile)


def test_memos_do_not_pile_up(tmp_path: Path) -> None:
    write(BASE)
    for seed in range(70):
        load("p.yaml", [f"seed={seed}"], tmp_path / "memo")
    assert len(memos(tmp_path / "memo")) == 64
