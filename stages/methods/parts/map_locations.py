"""Where in a network a method reads a map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stages.models.features import Features, FeatureSpec


@dataclass(frozen=True)
class MapLocation:
    """A map of a network: a stage, a stage end, or (with neither) the map that feeds the pooling.

    Args:
        stage: The number by which the method requested the stage.
        end: The stage end, counted from the deepest: -1.
        before: Whether the map is read before the activation that ends it; not for stages by number.
    """

    stage: int | None = None
    end: int | None = None
    before: bool = False

    def shape_in(self, spec: FeatureSpec, role: str) -> tuple[int, int, int]:
        """Look up the map's shape in a network.

        Args:
            spec: The network's shapes.
            role: "student" or "teacher", for the error message.

        Returns:
            (C, H, W).

        Raises:
            ModelError: The network has no such map.
        """
        return spec.shape_of(self.stage, role) if self.end is None else spec.ends[self.end]

    def map_in(self, features: Features) -> Tensor:
        """Select the map from a network's features.

        Args:
            features: The features of a batch of B images.

        Returns:
            (B, C, H, W) in the features' dtype.

        Raises:
            ValueError: The map before its activation was not observed.
        """
        if self.end is not None:
            return (features.ends_before if self.before else features.ends)[self.end]
        if not self.before:
            return features.layer(self.stage)
        if features.map_before is None:
            raise ValueError("these features have no map before its activation: set Needs.before_activation")
        return features.map_before
