from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

from pipeline.errors import ModelError
from stages.methods import registry
from stages.methods.kd import Kd
from stages.methods.msdcrd import Msdcrd
from stages.methods.settings import KdSettings, MethodSettings
from stages.models.features import Needs
from stages.settings import profile_model
from tests.errors import raises
from tests.stages.methods import made

ROOT = Path(__file__).parents[3]


def test_built_in_methods_are_made_from_their_settings() -> None:
    seen = made.features(made.maps(2, 4, 4, 4))
    spec = made.spec(seen)
    assert isinstance(registry.make(KdSettings(name="kd"), spec, spec), Kd)
    assert isinstance(registry.make(made.settings(), spec, spec), Msdcrd)
    assert registry.needs(KdSettings(name="kd")) == Needs()
    assert registry.needs(made.settings(layers=[1, -1])) == Needs(stages=(1, -1))


@pytest.mark.parametrize(
    ("epochs", "progress", "factor"),
    [(0, 0, 1), (4, 0, 0), (4, 1, 0.25), (4, 2.5, 0.625), (4, 4, 1), (4, 9, 1)],
)
def test_the_weight_warms_up_linearly(epochs: float, progress: float, factor: float) -> None:
    settings = KdSettings(name="kd", warmup_epochs=epochs)
    assert registry.warmup_factor(settings, progress) == pytest.approx(factor)


def test_settings_import_no_torch() -> None:
    code = "import sys, stages.settings, stages.methods.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_plug_in_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`(\w+\.(?:py|toml))`:\n\n```\w+\n(.*?)^```", text, re.M | re.S))
    for name in ("cosine_settings.py", "cosine_method.py"):
        (tmp_path / name).write_text(files[name])
    # What an installation leaves beside the modules.
    points = re.search(r'entry-points\."kdpipe.methods"\]\n(\w+) = "(.*)"', files["pyproject.toml"])
    assert points is not None
    facts = tmp_path / "kdpipe_cosine-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: kdpipe-cosine\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text(f"[kdpipe.methods]\n{points[1]} = {points[2]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    (point,) = entry_points(group="kdpipe.methods", name="cosine")
    kind = point.load()
    profile = profile_model((), (kind,)).model_validate(
        {
            "data": {"name": "digits"},
            "teacher": {"model": "resnet18"},
            "student": {"model": "resnet10t"},
            "distill": {"methods": [{"name": "cosine", "margin": 0.1}, {"name": "kd"}]},
        }
    )
    settings = profile.distill.methods[0]
    student, teacher = made.features(made.maps(3, 4, 2, 2)), made.features(made.maps(3, 6, 2, 2))
    method = registry.make(settings, made.spec(student), made.spec(teacher))
    loss = method(student, teacher, made.batch(made.labels(3), made.head(6)))
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert registry.needs(settings) == Needs()


@pytest.mark.parametrize(
    ("target", "word"),
    [("", "has no method"), ("nowhere_at_all:Thing", "cannot be imported"), ("math:sqrt", "is not a method")],
)
def test_a_plug_in_that_names_no_method_is_told_so(target: str, word: str) -> None:
    class Broken(MethodSettings):
        """A settings class with a wrong `method`."""

        method: ClassVar[str] = target
        name: Literal["broken"] = "broken"

    spec = made.spec(made.features(made.maps(2, 4, 4, 4)))
    with raises(ModelError, what=word):
        registry.make(Broken(), spec, spec)
