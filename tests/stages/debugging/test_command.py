"""`kdpipe debug --onnx` as a user calls it."""

from __future__ import annotations

from pathlib import Path

from tests.stages.debugging import faults


def test_the_first_diverging_layer_is_told_and_its_case_lies_in_the_store(tmp_path: Path) -> None:
    node = faults.changed(faults.student(), tmp_path / "bad.onnx", faults.other_weight)
    (tmp_path / "good.onnx").write_bytes(faults.student().read_bytes())
    faults.images(tmp_path)
    words = ("debug", "--onnx", "bad.onnx", "--against", "good.onnx", "--inputs", "images.npy")
    told = faults.kdpipe(tmp_path, *words)
    assert told.returncode == 3, told.stderr
    assert f"first divergence: {node} (Conv)" in told.stdout
    case = tmp_path / ".kdpipe" / "debug" / "bad"
    assert str(case) in told.stdout
    readme = (case / "README.md").read_text()
    assert "kdpipe debug --onnx suspect.onnx --against reference.onnx --inputs inputs/0.npy" in readme
    # What the README says to do shows it again, from its folder.
    again = faults.kdpipe(
        case,
        *readme.split("    kdpipe ")[1].splitlines()[0].split(),
        "--json",
        "--output",
        tmp_path / "again",
    )
    assert again.returncode == 3, again.stderr
    assert faults.document(again)["steps"][0]["first"]["node"] == node


def test_healthy_files_exit_with_0_and_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "good.onnx").write_bytes(faults.student().read_bytes())
    faults.images(tmp_path)
    before = sorted(tmp_path.iterdir())
    told = faults.kdpipe(
        tmp_path, "debug", "--onnx", "good.onnx", "--against", "good.onnx", "--inputs", "images.npy", "--json"
    )
    assert told.returncode == 0, told.stderr
    document = faults.document(told)
    assert (document["command"], document["schema_version"], document["healthy"]) == ("debug", 1, True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_output_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    told = faults.kdpipe(
        tmp_path, "debug", "--onnx", "a", "--against", "b", "--inputs", "c", "--output", "mine", "--json"
    )
    assert told.returncode == 2
    assert "not empty" in faults.document(told)["error"]["what"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


def test_neither_profile_nor_files_is_a_mistake(tmp_path: Path) -> None:
    told = faults.kdpipe(tmp_path, "debug")
    assert told.returncode == 2
    assert "kdpipe debug PROFILE" in told.stderr
