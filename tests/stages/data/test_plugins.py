"""A data set of a third party: a real package with an entry point, on sys.path."""

import hashlib
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.fingerprint import fingerprint
from stages.data.load import check, load
from stages.data.registry import plugin_kind, plugin_names
from stages.settings import profile_model
from tests.errors import raises
from tests.stages.data.conftest import all_pixels

PACKAGE = '''
from typing import Literal
from stages.data.settings import DataSettings
from stages.fields import setting

class StripesSettings(DataSettings):
    """Stripes, across or along."""
    name: Literal["stripes"]
    count: int = setting(12, "images a class", unit="images", ge=3)

    def load(self):
        import numpy as np
        from stages.data.raw import RawData, RawSplit
        images = np.random.default_rng(0).integers(0, 90, (2 * self.count, 8, 8), dtype=np.uint8)
        images[: self.count, ::2] += 100
        images[self.count :, :, ::2] += 100
        labels = np.repeat([0, 1], self.count)
        return RawData(("across", "along"), RawSplit(images, labels))

    def fingerprint(self, digest):
        return f"stripes {self.count}"

class NoLoad(DataSettings):
    name: Literal["no_load"]

class WrongName(StripesSettings):
    pass
'''

POINTS = """[kdpipe.data]
stripes = kdpipe_stripes:StripesSettings
no_load = kdpipe_stripes:NoLoad
misnamed = kdpipe_stripes:WrongName
absent = kdpipe_stripes:Nothing
function = kdpipe_stripes:setting
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdpipe_stripes.py").write_text(PACKAGE)
    facts = tmp_path / "kdpipe_stripes-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: kdpipe-stripes\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "kdpipe_stripes", raising=False)


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_loaded_split_and_fingerprinted_like_any_other() -> None:
    kind = plugin_kind("stripes")
    assert kind is not None
    settings = kind(name="stripes", image_size=8)
    check(settings)
    data = load(settings)
    assert data.classes == ("across", "along")
    assert len(data.train) + len(data.validation) + len(data.test) == 24
    assert all_pixels(data.train).shape[1:] == (8, 8, 1)
    assert fingerprint(settings, str) == "stripes 12"
    assert fingerprint(SimpleNamespace(**settings.model_dump()), str) == "stripes 12"


@pytest.mark.usefixtures("installed")
def test_a_profile_may_name_it() -> None:
    kind = plugin_kind("stripes")
    assert kind is not None
    profile = profile_model((kind,)).model_validate(
        {"data": {"name": "stripes", "count": 5}, "teacher": {"model": "a"}, "student": {"model": "b"}}
    )
    assert profile.data.count == 5  # type: ignore[attr-defined]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_load", "no method load and no method fingerprint"),
        ("misnamed", 'not Literal["misnamed"]'),
        ("absent", "AttributeError"),
        ("function", "not a subclass"),
    ],
)
def test_a_broken_plugin_is_named_with_its_package(name: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        plugin_kind(name)
    assert reason in caught.value.why
    assert "kdpipe-stripes 1.2" in caught.value.where


def test_nothing_installed_means_nothing_found() -> None:
    assert "stripes" not in plugin_names()
    assert plugin_kind("stripes") is None
    with raises(DataError, what="unknown kind of data set: stripes"):
        fingerprint(SimpleNamespace(name="stripes"), lambda path: hashlib.sha256(bytes(path)).hexdigest())


def test_equal_settings_give_equal_sets() -> None:
    from stages.data.settings import DigitsSettings

    first, second = (load(DigitsSettings(name="digits", split_seed=4)) for _ in range(2))
    assert first.preprocessing == second.preprocessing
    assert np.array_equal(all_pixels(first.train), all_pixels(second.train))
    other = load(DigitsSettings(name="digits", split_seed=5))
    assert not np.array_equal(other.test.labels, first.test.labels)
