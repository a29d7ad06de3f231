"""What installed packages offer: real modules with entry points, on sys.path."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import plugins

GROUP = "kdpipe.test"


def install(folder: Path, package: str, entry_points: str) -> None:
    facts = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{entry_points}")


def test_names_are_sorted_and_the_first_package_on_the_path_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "far", "kdpipe-far", "shape = json:dumps\n")
    install(tmp_path / "near", "kdpipe-near", "shape = json:loads\ncolour = json:gone\n")
    for folder in ("far", "near"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    points = plugins.installed(GROUP)
    assert list(points) == ["colour", "shape"]
    assert points["shape"].value == "json:loads"
    assert plugins.owner(points["shape"]) == "kdpipe-near 1.2"
    assert plugins.place(points["colour"]) == (
        "kdpipe-near 1.2, entry point colour = json:gone of group kdpipe.test"
    )
    assert plugins.load(points["shape"])("[1]") == [1]
    with pytest.raises(ImportError, match=r"^AttributeError: .*gone"):
        plugins.load(points["colour"])
    assert plugins.installed("kdpipe.nothing") == {}


def test_whatever_a_module_raises_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdpipe_angry.py").write_text("raise ZeroDivisionError('no')")
    install(tmp_path, "kdpipe-angry", "angry = kdpipe_angry:Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"^ZeroDivisionError: no$"):
        plugins.load(plugins.installed(GROUP)["angry"])


def test_a_reference_names_a_thing_in_a_module() -> None:
    assert plugins.imported("pipeline.plugins:imported") is plugins.imported
    for reference in ("pipeline.plugins:gone", "pipeline.gone:x"):
        with pytest.raises((ImportError, AttributeError), match="gone"):
            plugins.imported(reference)
