"""What every distillation method may be told. Light: imports pydantic alone."""

from __future__ import annotations

from typing import ClassVar

from stages.fields import Settings, setting


class MethodSettings(Settings):
    """What every method shares. A method's own settings class adds its keys, and `name: Literal["..."]`."""

    method: ClassVar[str] = ""
    """The class that computes it, "module:Class", a stages.methods.base.Method; imported when needed."""

    weight: float = setting(1.0, "factor of this method's loss in the sum", ge=0.0)
    warmup_epochs: float = setting(
        0.0, "the weight rises linearly from 0 over these epochs", unit="epochs", ge=0.0
    )
