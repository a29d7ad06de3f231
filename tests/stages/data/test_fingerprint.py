import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint
from stages.data.settings import (
    DigitsSettings,
    IdxSettings,
    ImageFolderSettings,
    NpzSettings,
    TorchvisionSettings,
)
from tests.errors import raises
from tests.stages.data.conftest import MakeFolder, some_images, write_idx


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_folder(root: Path) -> str:
    return fingerprint(ImageFolderSettings(name="image_folder", root=str(root)), digest)


def test_a_folder_s_fingerprint_depends_on_its_content_and_not_on_its_path(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    first = make_folder(tmp_path / "one", {"a": 4, "b": 4})
    before = of_folder(first)
    second = tmp_path / "deeper" / "two"
    shutil.copytree(first, second)
    os.utime(second / "a" / "image000.png", (1, 1))
    (second / "a" / ".DS_Store").write_bytes(b"x")
    assert of_folder(second) == before


@pytest.mark.parametrize("change", ["bytes", "name", "class", "less", "more", "swap"])
def test_every_change_of_content_shows(tmp_path: Path, make_folder: MakeFolder, change: str) -> None:
    make_folder(tmp_path, {"a": 4, "b": 4})
    before = of_folder(tmp_path)
    image = tmp_path / "a" / "image000.png"
    if change == "bytes":
        image.write_bytes(image.read_bytes() + b"\0")
    elif change == "name":
        image.rename(image.with_name("z.png"))
    elif change == "class":
        image.rename(tmp_path / "b" / "z.png")
    elif change == "less":
        image.unlink()
    elif change == "more":
        shutil.copyfile(image, image.with_name("z.png"))
    else:
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "b").rename(tmp_path / "a")
        (tmp_path / "c").rename(tmp_path / "b")
    assert of_folder(tmp_path) != before


def test_a_namespace_works_like_typed_settings(tmp_path: Path) -> None:
    write_idx(tmp_path, some_images(9, (8, 8)), np.tile(np.arange(3), 3))
    typed = IdxSettings(name="idx", root=str(tmp_path))
    assert fingerprint(SimpleNamespace(**typed.model_dump()), digest) == fingerprint(typed, digest)
    digits = DigitsSettings(name="digits")
    assert fingerprint(SimpleNamespace(**digits.model_dump()), digest) == fingerprint(digits, digest)


def test_class_names_count_where_they_are_read_from_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=some_images(9, (8, 8)), labels=np.tile(np.arange(3), 3))
    read = NpzSettings(name="npz", root=str(tmp_path))
    given = NpzSettings(name="npz", root=str(tmp_path), classes=["a", "b", "c"])
    before = [fingerprint(settings, digest) for settings in (read, given)]
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    after = [fingerprint(settings, digest) for settings in (read, given)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_missing_sets_and_single_classes_are_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    for settings in (
        IdxSettings(name="idx"),
        NpzSettings(name="npz", root=str(tmp_path / "nowhere")),
        ImageFolderSettings(name="image_folder", root=str(tmp_path)),
        TorchvisionSettings(name="svhn", root=str(tmp_path)),
    ):
        with pytest.raises(DataError):
            fingerprint(settings, digest)
    make_folder(tmp_path, {"a": 3})
    with raises(DataError, what="one class"):
        of_folder(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    with raises(DataError, what="cannot be read"):
        of_folder(tmp_path)


def test_it_imports_nothing_heavy(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 3, "b": 3})
    program = f"""
import sys
from types import SimpleNamespace
from stages.data.fingerprint import fingerprint
digest = lambda path: str(path.stat().st_size)
fingerprint(SimpleNamespace(name="digits"), digest)
fingerprint(SimpleNamespace(name="image_folder", root={str(tmp_path)!r}), digest)
fingerprint(SimpleNamespace(name="cifar10", root={str(tmp_path)!r}, download=True), digest)
heavy = [name for name in ("numpy", "PIL", "sklearn", "torch", "pydantic", "scipy") if name in sys.modules]
sys.exit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
