"""What is said of a profile with faults: all of them, each at its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.profile.loading import load
from tests.pipeline.profile_texts import BASE, fault_lines, faults, only_fault, write

METHODS = (
    "msdcrd, dcd, lfcc, kd, dkd, dist, mlkd, sdd, rkd, crd, fitnet, reviewkd, simkd, rsd, ofa, uhkd, pat, fbt"
)

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


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
    assert fault_lines(text, "export.opset=1") == [
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
        (
            "p.yaml:11:1",
            "unknown key 'epochs'",
            "'epochs' belongs under train or distill or quantize.distill",
        ),
        (
            "p.yaml:12:7",
            "seed: found 1.0, expected a whole number of at least 0 and below 2147483648",
            "write 1",
        ),
        ("p.yaml:13:1", "the key 'seed' appears twice; first in line 12", ""),
        ("--set export.opset", "export.opset: found 1, expected a whole number from 18 to 23", ""),
    ]


@pytest.mark.parametrize(
    ("lines", "place", "message", "hint"),
    [
        ("train:\n", "p.yaml:5:7", "train: found null, expected a group of keys", "leave the key out"),
        (
            "distill: {methods: [{name: msdcrd, layers: 5}]}",
            "p.yaml:5:44",
            "distill.methods.0.layers: found 5, expected a list of whole numbers or one of last, ends",
            "write layers: [5]",
        ),
        (
            "distill: {methods: [{name: kdd}]}",
            "p.yaml:5:28",
            f"distill.methods.0.name: found 'kdd', expected one of {METHODS}",
            "did you mean 'kd'?",
        ),
        (
            "distill: {methods: [{weight: 1}]}",
            "p.yaml:5:21",
            f"distill.methods.0.name is missing, expected one of {METHODS}",
            "",
        ),
        (
            "distill: {methods: [kd]}",
            "p.yaml:5:21",
            f"distill.methods.0: found 'kd', expected a group of keys with a name: one of {METHODS}",
            "write {name: kd}",
        ),
        (
            "targets: []",
            "p.yaml:5:10",
            "targets: found [], expected a list of entries, at least 1 of them",
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
            "targets: [onnxruntime-fp32, tensorrt-fp16]\n"
            "build: {batch_min: 4}\n"
            "measure: {batch_sizes: [4, 2, 8]}",
            "p.yaml:6:20",
            "build.batch_min 4 is above 2 of measure.batch_sizes: tensorrt-fp16 cannot run these; "
            "set build.batch_min to 2, or measure.batch_sizes to batches of at least 4",
            "",
        ),
        (
            "targets: [openvino-fp32, openvino-fp32]",
            "p.yaml:5:10",
            "targets has openvino-fp32 more than once",
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
def test_a_fault_has_the_value_and_what_is_expected(lines: str, place: str, message: str, hint: str) -> None:
    where, text, help_ = only_fault(BASE + lines)
    assert where == place
    assert text.startswith(message)
    assert hint in help_
    assert bool(hint) == bool(help_)


@pytest.mark.parametrize(
    "lines",
    [
        "targets: [onnxruntime-fp32]\nbuild: {batch_min: 4}",
        "targets: [tensorrt-fp16]\nbuild: {batch_min: 4}\nmeasure: {batch_sizes: [4, 8]}",
    ],
)
def test_a_smallest_batch_that_nothing_measured_is_below_is_no_fault(lines: str) -> None:
    assert load(write(BASE + lines)).sections["build"]["batch_min"] == 4


def test_missing_keys_point_at_the_group_that_lacks_them() -> None:
    assert [
        (place, message.partition(" is missing")[0])
        for place, message, _ in fault_lines("teacher: {stem: small}")
    ] == [
        ("p.yaml:1:1", "data"),
        ("p.yaml:1:1", "student"),
        ("p.yaml:1:10", "teacher.model"),
    ]


def test_an_unknown_kind_of_data_lists_the_known_ones() -> None:
    place, message, hint = only_fault(BASE.replace("digits", "digts"))
    assert place == "p.yaml:2:9"
    assert message.startswith("data.name: found 'digts', expected one of digits, idx, npz")
    assert hint == "did you mean 'digits'?"


def test_a_key_of_another_kind_is_reported_so() -> None:
    place, message, hint = only_fault(BASE.replace("digits", "digits\n  root: x"))
    assert (place, message) == ("p.yaml:3:3", "unknown key 'root' in data")
    assert hint.startswith("'root' belongs under data with name idx, npz")


def test_a_misspelt_extends_is_one_fault() -> None:
    assert only_fault("extnds: resnet_to_mobilenet\n")[2] == "did you mean 'extends'?"


def _keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        inner = [key for key in value if key not in ("options",)]
        return [(*path, key) for key in value] + [p for key in inner for p in _keys(value[key], (*path, key))]
    if isinstance(value, list):
        return [p for index, entry in enumerate(value) for p in _keys(entry, (*path, index))]
    return []


@pytest.mark.long
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
