"""The settings that all distillation methods share. Imports only pydantic."""

from __future__ import annotations

from typing import ClassVar

from stages.fields import Settings, setting


class MethodSettings(Settings):
    """The settings that all methods share.

    A method's settings class adds `name: Literal["..."]` and its own fields. Those fields become keyword
    arguments of the method's class (`stages.methods.registry`).
    """

    method: ClassVar[str] = ""
    """The method's class, "module:Class", a subclass of stages.methods.base.Method; imported when needed."""

    weight: float = setting(1.0, "factor of this method's loss in the sum", ge=0.0)
    warmup_epochs: float = setting(
        0.0, "number of first epochs in which the weight rises linearly from 0", unit="epochs", ge=0.0
    )
