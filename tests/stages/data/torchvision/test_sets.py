"""torchvision's sets, in its own file formats.

The real sets are too large for tests: the checksums of small files in the same format replace the official
checksums of CIFAR and SVHN.
"""

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]
from torchvision import datasets

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint, official_fingerprint
from stages.data.load import check, load
from stages.data.torchvision.table import SETS
from tests.errors import raises
from tests.stages.data.conftest import all_pixels, digest, md5, settings, some_images, write_idx

DIGITS = np.tile(np.arange(10), 6)
NAMES = [f"class {number}" for number in range(10)]


def write_cifar10(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir(parents=True)

    def dump(name: str, content: Any) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, md5(base / name)]

    def part(seed: int, count: int) -> dict[str, Any]:
        images = some_images(count, (32, 32, 3), seed).transpose(0, 3, 1, 2).reshape(count, -1)
        return {"data": images, "labels": DIGITS[:count].tolist()}

    train = [dump(f"data_batch_{number}", part(number, 20)) for number in range(1, 6)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [dump("test_batch", part(9, 30))])
    meta = dump("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})


@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_is_found_where_torchvision_puts_it_and_in_the_root_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    base = tmp_path / "cifar-10-batches-py"
    write_cifar10(base, monkeypatch)
    if not inside:
        base = base.rename(tmp_path / "my copy")
    data = load(settings("cifar10", tmp_path if inside else base))
    assert data.classes == tuple(NAMES)
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 30)
    assert np.array_equal(all_pixels(data.test), some_images(30, (32, 32, 3), 9))
    assert data.test.labels.tolist() == DIGITS[:30].tolist()


def test_a_file_that_is_not_the_official_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        check(settings("cifar10", tmp_path))
    assert "not the official" in caught.value.why
    assert "download=true" in caught.value.hint


def test_svhn_and_its_label_of_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = dict(datasets.SVHN.split_list)
    for part, count in (("train", 60), ("test", 20)):
        images, labels = some_images(count, (32, 32, 3), count), DIGITS[:count].copy()
        labels[labels == 0] = 10  # as the set writes it
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels.reshape(-1, 1).astype(np.uint8)})
        official[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", official)
    data = load(settings("svhn", tmp_path))
    assert np.array_equal(all_pixels(data.test), some_images(20, (32, 32, 3), 20))
    assert data.test.labels.tolist() == DIGITS[:20].tolist()


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", ""])
def test_fashion_mnist_is_found_unpacked_and_as_published(tmp_path: Path, folder: str) -> None:
    write_idx(tmp_path / folder, some_images(60, (28, 28)), DIGITS, compress=not folder)
    write_idx(tmp_path / folder, some_images(20, (28, 28), 4), DIGITS[:20], part="t10k", compress=not folder)
    data = load(settings("fashion_mnist", tmp_path, image_size=28))
    assert data.classes[0] == "T-shirt/top"
    assert data.preprocessing.channels == 1
    assert np.array_equal(all_pixels(data.test)[..., 0], some_images(20, (28, 28), 4))


def test_food101_follows_its_lists(tmp_path: Path) -> None:
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    lists = {
        part: {label: [f"{label}/{part}{n}" for n in range(count)] for label in ("pizza", "apple_pie")}
        for part, count in (("train", 4), ("test", 2))
    }
    for part, names in lists.items():
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))
        for label, files in names.items():
            (base / "images" / label).mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(files):
                Image.fromarray(some_images(1, (40, 60, 3), number)[0]).save(base / "images" / f"{name}.jpg")
    data = load(settings("food101", tmp_path))
    assert data.classes == ("apple_pie", "pizza")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert len(data.train) + len(data.validation) == 8
    (base / "images" / "pizza" / "train1.jpg").unlink()
    with raises(DataError, why="no such file"):
        check(settings("food101", tmp_path))
    (base / "meta" / "test.json").write_text("{")
    with raises(DataError, what="damaged"):
        check(settings("food101", tmp_path))


def test_flowers102_has_three_splits_of_its_own(tmp_path: Path) -> None:
    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    labels = np.concatenate([np.arange(1, 103), np.arange(1, 103), np.arange(1, 4)])
    savemat(base / "imagelabels.mat", {"labels": labels})
    numbers = np.arange(1, len(labels) + 1)
    savemat(base / "setid.mat", {"trnid": numbers[:102], "valid": numbers[102:204], "tstid": numbers[204:]})
    for number in numbers:
        pixels = np.full((32, 33, 3), number, np.uint8)
        Image.fromarray(pixels).save(base / "jpg" / f"image_{number:05d}.jpg")
    data = load(settings("flowers102", tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (102, 102, 3)
    assert data.validation.labels.tolist() == list(range(102))
    assert abs(int(all_pixels(data.test)[2, 0, 0, 0]) - 207) <= 2


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_names_three_ways_to_get_it(tmp_path: Path, name: str) -> None:
    for root in (None, tmp_path, tmp_path / "nowhere"):
        for use in (load, check, lambda chosen: fingerprint(chosen, digest)):
            with pytest.raises(DataError) as caught:
                use(settings(name, root))
            for way in (
                "(1)",
                "--set data.root=DIR",
                "(2)",
                "data.download=true",
                "(3)",
                "npz",
                "image_folder",
            ):
                assert way in caught.value.hint
    if name != "imagenet":
        with raises(DataError, why="root is not set"):
            check(settings(name, None, download=True))


def test_the_facts_are_torchvisions_own() -> None:
    theirs: dict[str, list[tuple[str, str]]] = {
        "cifar10": [(datasets.CIFAR10.filename, datasets.CIFAR10.tgz_md5)],
        "cifar100": [(datasets.CIFAR100.filename, datasets.CIFAR100.tgz_md5)],
        "svhn": [
            (datasets.SVHN.split_list[part][1], datasets.SVHN.split_list[part][2])
            for part in ("train", "test")
        ],
        "flowers102": list(datasets.Flowers102._file_dict.values()),
        "food101": [("food-101.tar.gz", datasets.Food101._MD5)],
        "fashion_mnist": list(datasets.FashionMNIST.resources),
        "mnist": list(datasets.MNIST.resources),
        "stl10": [(datasets.STL10.filename, datasets.STL10.tgz_md5)],
        "oxford_iiit_pet": [(Path(url).name, md5) for url, md5 in datasets.OxfordIIITPet._RESOURCES],
        "dtd": [(Path(datasets.DTD._URL).name, datasets.DTD._MD5)],
        "imagenet": [],
    }
    for name, size in (("imagenette", "full"), ("imagenette_320", "320px"), ("imagenette_160", "160px")):
        url, sum_ = datasets.Imagenette._ARCHIVES[size]
        theirs[name] = [(Path(url).name, sum_)]
        assert SETS[name].folder == Path(url).stem
    # Those of EuroSAT and GTSRB are inside functions; the download tests compare them.
    ours = {name: list(facts.official) for name, facts in SETS.items() if name not in ("eurosat", "gtsrb")}
    assert ours == theirs
    for name, known in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        files = [file for file, _ in known.train_list + known.test_list] + [known.meta["filename"]]
        assert (known.base_folder, tuple(files)) == (
            SETS[name].folder,
            SETS[name].needed,
        )


def serve_cifar10(served: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "source" / "cifar-10-batches-py", monkeypatch)
    archive = served / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "source" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", address + archive.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))


def test_a_downloaded_set_keeps_the_fingerprint_it_had_before(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar10(server[1], server[0], tmp_path, monkeypatch)
    root = tmp_path / "new" / "root"
    downloading = settings("cifar10", root, download=True)
    check(downloading)
    before = fingerprint(downloading, digest)
    assert before == official_fingerprint("cifar10")
    assert not root.exists()
    assert len(load(downloading).test) == 30
    assert fingerprint(downloading, digest) == before
    assert fingerprint(settings("cifar10", root), digest) == before
    assert not list(root.glob(".kdpipe-download-*"))
    copy = tmp_path / "copy"
    root.rename(copy)
    assert fingerprint(settings("cifar10", copy), digest) == before
    batch = copy / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes() + b"\0")
    assert fingerprint(settings("cifar10", copy), digest) != before


@pytest.mark.parametrize("failure", ["absent", "damaged", "no server"])
def test_a_failed_download_is_reported_and_leaves_nothing(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    serve_cifar10(server[1], server[0], tmp_path, monkeypatch)
    archive = server[1] / "cifar-10-python.tar.gz"
    if failure == "absent":
        archive.unlink()
    elif failure == "damaged":
        archive.write_bytes(archive.read_bytes()[:-200])
    else:
        monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with raises(DataError, what="cannot be downloaded") as caught:
        load(settings("cifar10", tmp_path / "new" / "root", download=True))
    assert caught.value.why
    assert not (tmp_path / "new").exists()
