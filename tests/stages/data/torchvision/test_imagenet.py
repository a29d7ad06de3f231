"""ImageNet in torchvision's layout: small folders and archives in the published form."""

import shlex
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.io import savemat  # type: ignore[import-untyped]
from torchvision import datasets
from torchvision.datasets import imagenet

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint
from stages.data.load import check, load
from stages.data.torchvision import sets as torchvision_sets
from tests.errors import raises
from tests.stages.data.conftest import digest, md5, paths_of, settings
from tests.stages.data.published import write_image

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
}
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def write_folders(root: Path) -> Path:
    for label, wnid in enumerate(WORDS):
        for number in range(4):
            write_image(root / "train" / wnid / f"{wnid}_{number}.JPEG", 10 * label + number)
    for number, wnid in enumerate([*reversed(WORDS), *WORDS], 1):
        write_image(root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)
    return root


def write_devkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the archive with meta.mat (inner nodes of the tree have children) and the validation's labels."""
    source = root / "source" / "ILSVRC2012_devkit_t12"
    (source / "data").mkdir(parents=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, words, "", 0) for number, (wnid, words) in enumerate(WORDS.items(), 1)]
    savemat(source / "data" / "meta.mat", {"synsets": np.array([*rows, (4, "n1", "bird", "", 2)], fields)})
    (source / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n2\n1\n1\n2\n3\n")
    with tarfile.open(root / DEVKIT, "w:gz") as tar:
        tar.add(source, source.name)
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5(root / DEVKIT)))


def test_the_validation_images_are_the_test_split(tmp_path: Path) -> None:
    data = load(settings("imagenet", write_folders(tmp_path)))
    assert data.classes == tuple(WORDS)
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 6)
    raw = torchvision_sets.read(settings("imagenet", tmp_path))
    assert raw.test is not None
    assert raw.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.parent.name for path in paths_of(raw.test)] == [raw.classes[n] for n in raw.test.labels]


@pytest.mark.parametrize("names", ["devkit", "meta.bin", "both"])
def test_classes_are_called_by_the_development_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    write_folders(tmp_path)
    unnamed = fingerprint(settings("imagenet", tmp_path), digest)
    write_devkit(tmp_path, monkeypatch)
    if names != "devkit":
        theirs = datasets.ImageNet(str(tmp_path), split="val")  # it writes meta.bin
        assert [words[0] for words in theirs.classes] == ["tench", "crane", "crane"]
    if names == "meta.bin":
        (tmp_path / DEVKIT).unlink()
    assert torchvision_sets.read(settings("imagenet", tmp_path)).classes == NAMES
    assert (tmp_path / "meta.bin").exists() == (names != "devkit")
    assert fingerprint(settings("imagenet", tmp_path), digest) != unnamed


def test_what_torchvision_makes_of_the_kit_does_not_count_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_devkit(write_folders(tmp_path), monkeypatch)
    before = fingerprint(settings("imagenet", tmp_path), digest)
    datasets.ImageNet(str(tmp_path), split="val")
    assert fingerprint(settings("imagenet", tmp_path), digest) == before


def test_names_that_cannot_be_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path)
    for content in (b"", b"no pickle at all"):
        (tmp_path / "meta.bin").write_bytes(content)
        with raises(DataError, what="class names cannot be read"):
            check(settings("imagenet", tmp_path))
    torch.save(({"n9": ("other",)}, []), tmp_path / "meta.bin")
    assert load(settings("imagenet", tmp_path)).classes == tuple(WORDS)
    write_devkit(tmp_path, monkeypatch)
    (tmp_path / DEVKIT).write_bytes(b"cut short")
    with raises(DataError, what="class names cannot be read") as caught:
        check(settings("imagenet", tmp_path))
    assert caught.value.where == str(tmp_path / DEVKIT)


def pack(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of `write_folders` as the two published archives."""
    folders = write_folders(root / "unpacked")
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as train:
        for wnid in WORDS:
            with tarfile.open(root / f"{wnid}.tar", "w") as inner:
                for path in sorted((folders / "train" / wnid).iterdir()):
                    inner.add(path, path.name)
            train.add(root / f"{wnid}.tar", f"{wnid}.tar")
            (root / f"{wnid}.tar").unlink()
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as val:
        for path in sorted((folders / "val").rglob("*.JPEG")):
            val.add(path, path.name)
    for split in ("train", "val"):
        name = f"ILSVRC2012_img_{split}.tar"
        monkeypatch.setitem(imagenet.ARCHIVE_META, split, (name, md5(root / name)))


def run_hint(error: DataError) -> None:
    """Run the Python code in the hint's last line in this process, which accepts the small archives."""
    python, flag, code = shlex.split(error.hint.splitlines()[-1])
    assert (python, flag) == ("python", "-c")
    exec(code, {})


def test_archives_are_never_unpacked_but_the_hint_has_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path, monkeypatch)
    before = sorted(tmp_path.iterdir())
    for use in (load, check, lambda chosen: fingerprint(chosen, digest)):
        with raises(DataError, what="not unpacked") as caught:
            use(settings("imagenet", tmp_path))
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in caught.value.why
    assert f"put {DEVKIT} into this folder" in caught.value.hint
    assert sorted(tmp_path.iterdir()) == before
    write_devkit(tmp_path, monkeypatch)
    with raises(DataError, what="not unpacked") as caught:
        check(settings("imagenet", tmp_path))
    assert "put" not in caught.value.hint
    run_hint(caught.value)
    raw, plain = (
        torchvision_sets.read(settings("imagenet", root)) for root in (tmp_path, tmp_path / "unpacked")
    )
    assert raw.classes == NAMES
    assert raw.test is not None
    assert plain.test is not None
    for ours, theirs in ((raw.train, plain.train), (raw.test, plain.test)):
        assert [path.name for path in paths_of(ours)] == [path.name for path in paths_of(theirs)]


def test_what_is_half_unpacked_is_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path, monkeypatch)
    write_devkit(tmp_path, monkeypatch)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar") as val:
        val.extractall(tmp_path / "val", filter="data")
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar") as train:
        train.extractall(tmp_path / "train", filter="data")
    with raises(DataError, what="only partly unpacked") as caught:
        fingerprint(settings("imagenet", tmp_path), digest)
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    (tmp_path / "train").rmdir()
    run_hint(caught.value)
    with raises(DataError, what="not sorted into class folders") as caught:
        check(settings("imagenet", tmp_path))
    for path in (tmp_path / "val").iterdir():
        path.unlink()
    (tmp_path / "val").rmdir()
    run_hint(caught.value)
    check(settings("imagenet", tmp_path))


def test_validation_has_no_class_of_its_own(tmp_path: Path) -> None:
    write_image(write_folders(tmp_path) / "val" / "n99999999" / "a.JPEG", 1)
    with raises(DataError, what="training images do not have") as caught:
        check(settings("imagenet", tmp_path))
    assert "n99999999" in caught.value.why


def test_it_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="only to registered persons"):
        settings("imagenet", tmp_path, download=True)
    with raises(DataError, what="imagenet is missing") as caught:
        fingerprint(SimpleNamespace(name="imagenet", root=str(tmp_path), download=True), digest)
    assert "data.name=imagenette" in caught.value.hint
