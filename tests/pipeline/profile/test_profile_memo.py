"""What is remembered of a valid profile, and when it no longer holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ProfileError
from pipeline.profile.loading import LoadedProfile, load
from tests.pipeline.profile_texts import BASE, ROOT, write

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


CODE = """
import sys
from pathlib import Path
from pipeline.profile.loading import load
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


def test_an_installed_kdpipe_brings_its_profiles_and_forgets_what_another_version_cached(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "site-packages"
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", installed / "pipeline" / "profiles")
    place = installed / "pipeline" / "profiles" / "resnet_to_mobilenet.yaml"
    heavy = " pydantic yaml"
    for expected in (heavy, ""):
        output = in_a_process("profiles/resnet_to_mobilenet.yaml", tmp_path / "memo", source=installed)
        assert output.split(" ", 1)[1].startswith(f"{place}:")
        assert output.endswith(heavy) == bool(expected)
    declarations = installed / "stages" / "data" / "settings.py"
    declarations.write_text(declarations.read_text() + "# changed\n")
    assert in_a_process("resnet_to_mobilenet", tmp_path / "memo", source=installed).endswith(heavy)


def memos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_a_memo_equals_reading(tmp_path: Path) -> None:
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
