"""Profiles written for tests, and what is said of their faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import Fault, ProfileError
from pipeline.profile.loading import load

ROOT = Path(__file__).resolve().parents[2]
BASE = """\
data:
  name: digits
teacher: {model: resnet18}
student: {model: mobilenetv3_small_050}
"""


def write(text: str, name: str = "p.yaml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def faults(path: str, *overrides: str) -> list[Fault]:
    with pytest.raises(ProfileError) as caught:
        load(path, overrides)
    return list(caught.value.faults)


def fault_lines(text: str, *overrides: str) -> list[tuple[str, str, str]]:
    return [(fault.place, fault.message, fault.hint) for fault in faults(write(text), *overrides)]


def only_fault(text: str, *overrides: str) -> tuple[str, str, str]:
    (only,) = fault_lines(text, *overrides)
    return only
