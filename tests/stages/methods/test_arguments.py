"""Every built-in loss takes plain keyword arguments, which never differ from its settings class."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args, get_origin

import annotated_types
import pytest
import torch

from pipeline.errors import ModelError
from stages.methods import observed, registry
from stages.methods.base import Method
from stages.methods.settings import BUILT_IN, MethodSettings
from stages.models.features import FeatureSpec
from tests.errors import raises
from tests.stages.methods import made
from tests.stages.methods.test_every_method import ALIKE, name_of, settings_of

CLASSES = {name_of(kind): registry.method_class(settings_of(kind)) for kind in BUILT_IN}
SETTINGS = {name_of(kind): kind for kind in BUILT_IN}
by_name = pytest.mark.parametrize("name", SETTINGS)
SHARED = {"name", *MethodSettings.model_fields}


def own_fields(kind: type[MethodSettings]) -> list[str]:
    return [key for key in kind.model_fields if key not in SHARED]


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def keywords_of(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one for one in parameters if one.kind is one.KEYWORD_ONLY}


@by_name
def test_the_constructor_has_the_names_and_defaults_of_the_settings(name: str) -> None:
    kind, cls = SETTINGS[name], CLASSES[name]
    defaults = kind.model_validate({"name": name})
    keywords = keywords_of(cls)
    assert list(keywords) == own_fields(kind)
    for key, parameter in keywords.items():
        assert plain(parameter.default) == getattr(defaults, key), key
        assert type(plain(parameter.default)) is type(getattr(defaults, key)), key


@by_name
def test_what_is_asked_before_the_networks_has_the_same_defaults(name: str) -> None:
    defaults = SETTINGS[name].model_validate({"name": name})
    for function in (CLASSES[name].needs, CLASSES[name].build_student, CLASSES[name].check_student):
        for key, parameter in keywords_of(function).items():
            if key in ("image_sizes", "image_size", "image_channels"):
                assert parameter.default is parameter.empty
                assert key not in own_fields(SETTINGS[name])
            else:
                assert plain(parameter.default) == getattr(defaults, key), key


def specs(name: str) -> tuple[FeatureSpec, FeatureSpec]:
    shapes = [(4, 16, 16), (6, 8, 8), (6, 4, 4)]
    teacher = made.spec(made.of_ends(shapes, 2, 1))
    return (teacher if name in ALIKE else made.spec(made.of_ends(shapes[1:], 2, 2))), teacher


@by_name
def test_plain_arguments_make_the_method_of_the_settings(name: str) -> None:
    settings = settings_of(SETTINGS[name])
    torch.manual_seed(0)
    by_settings = registry.make(settings, *specs(name))
    torch.manual_seed(0)
    by_arguments = CLASSES[name](*specs(name), **registry.arguments_of(settings))
    assert type(by_arguments) is type(by_settings)
    state, other = by_settings.state_dict(), by_arguments.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key].nan_to_num(), other[key].nan_to_num()) for key in state)


def beyond_the_limits() -> Iterator[tuple[str, str, Any]]:
    """(method, key, value) just outside each limit that a settings class declares."""
    for name, kind in SETTINGS.items():
        for key in own_fields(kind):
            field = kind.model_fields[key]
            step = 1 if field.annotation is int else 1e-3
            for limit in field.metadata:
                match limit:
                    case annotated_types.Gt():
                        yield name, key, limit.gt
                    case annotated_types.Ge():
                        yield name, key, limit.ge - step  # type: ignore[operator]
                    case annotated_types.Lt():
                        yield name, key, limit.lt
                    case annotated_types.Le():
                        yield name, key, limit.le + step  # type: ignore[operator]
                    case annotated_types.MinLen():
                        yield name, key, []
            if Literal in (get_origin(field.annotation), *map(get_origin, get_args(field.annotation))):
                yield name, key, "nonsense"
            if field.annotation is float:
                yield name, key, float("nan")


ALSO_INVALID: list[tuple[str, dict[str, Any]]] = [
    ("msdcrd", {"alpha": 0.0, "beta": 0.0}),
    ("msdcrd", {"grids": [0]}),
    ("msdcrd", {"layers": []}),
    ("msdcrd", {"layers": [1, 1]}),
    ("msdcrd", {"layers": [1], "activation": "before"}),
    ("dcd", {"scale": 11.0}),
    ("lfcc", {"grids": [2, 0]}),
    ("lfcc", {"stages": []}),
    ("lfcc", {"stages": [0]}),
    ("lfcc", {"stages": [-5]}),
    ("lfcc", {"stages": [-1, -1]}),
    ("lfcc", {"kernel": 4}),
    ("dkd", {"alpha": 0.0, "beta": 0.0}),
    ("dist", {"beta": 0.0, "gamma": 0.0}),
    ("mlkd", {"instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 0.0}),
    ("mlkd", {"temperatures": [1.0, 0.0]}),
    ("sdd", {"grids": [0]}),
    ("sdd", {"inner": "dkd", "alpha": 0.0, "beta": 0.0}),
    ("rkd", {"distance_weight": 0.0, "angle_weight": 0.0}),
    ("fitnet", {"hints": []}),
    ("fitnet", {"hints": [0]}),
    ("fitnet", {"hints": [-1, -1]}),
    ("pat", {"queries": 20}),
    ("pat", {"width": 10, "heads": 4}),
    ("fbt", {"lambda_contrast": 0.0, "lambda_logits": 0.0}),
]


@pytest.mark.parametrize(
    ("name", "keys"),
    [*((name, {key: value}) for name, key, value in beyond_the_limits()), *ALSO_INVALID],
    ids=str,
)
def test_the_constructor_refuses_what_the_settings_refuse(name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SETTINGS[name].model_validate({"name": name, **keys})
    with pytest.raises(ValueError, match="|".join(keys)):
        CLASSES[name](*specs(name), **keys)


def test_the_limits_are_not_overlooked() -> None:
    limits = list(beyond_the_limits())
    assert len(limits) > 100
    assert ("msdcrd", "grids", []) in limits
    assert ("msdcrd", "tau_sample", 0.0) in limits
    assert ("msdcrd", "pool", "nonsense") in limits


@pytest.mark.parametrize("subject", [*CLASSES.values(), observed.run_networks], ids=lambda one: one.__name__)
def test_the_example_of_the_docstring_runs(subject: Any) -> None:
    assert subject.__doc__ is not None
    examples = doctest.DocTestParser().get_doctest(subject.__doc__, {}, subject.__name__, None, None)
    assert f"{subject.__name__}(" in subject.__doc__
    namespace: dict[str, Any] = {"run_networks": observed.run_networks}
    examples.globs = namespace
    assert len(examples.examples) > 5
    report: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(examples, out=report.append, clear_globs=False)
    assert outcome.failed == 0, "".join(report)
    assert namespace["loss"].dtype == torch.float32
    assert namespace["loss"].isfinite()


class Old(Method):
    """Takes its settings as one object."""

    name = "old"

    def __init__(self, settings: Any, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(student, teacher)

    @classmethod
    def needs(cls, settings: Any) -> Any:  # type: ignore[override]
        raise AssertionError

    def forward(self, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        return student.logits.mean()


class OldSettings(MethodSettings):
    """Its settings."""

    method: ClassVar[str] = f"{__name__}:Old"
    name: Literal["old"] = "old"
    strength: float = 1.0


def test_a_plug_in_that_does_not_take_its_fields_is_an_error_with_the_reason() -> None:
    for use in (lambda: registry.make(OldSettings(), *specs("kd")), lambda: registry.needs(OldSettings())):
        with raises(ModelError, what="does not take the fields of its settings class") as caught:
            use()
        assert "strength" in str(caught.value) or "settings" in str(caught.value)


def test_settings_are_unpacked_without_the_shared_fields() -> None:
    settings = OldSettings(strength=2.0, weight=3.0, warmup_epochs=1.0)
    assert registry.arguments_of(settings) == {"strength": 2.0}
    names: Sequence[str] = own_fields(OldSettings)
    assert names == ["strength"]
