"""Where in a network a method takes a map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stages.models.features import Features, FeatureSpec


@dataclass(frozen=True)
class Place:
    """A map of a network: of a stage by the number it was asked by, or of a stage end, counted from the
    deepest, -1; with neither, the one that feeds the pooling.

    before: as it is before the activation that ends it; not for stages by number.
    """

    stage: int | None = None
    end: int | None = None
    before: bool = False

    def shape(self, spec: FeatureSpec, role: str) -> tuple[int, int, int]:
        """(C, H, W). Raises ModelError if the network (the `role`: teacher, student) does not show it."""
        return spec.shape_of(self.stage, role) if self.end is None else spec.ends[self.end]

    def of(self, features: Features) -> Tensor:
        """(B, C, H, W)."""
        if self.end is not None:
            return (features.ends_before if self.before else features.ends)[self.end]
        if self.before:
            assert features.map_before is not None
            return features.map_before
        return features.layer(self.stage)
