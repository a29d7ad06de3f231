"""Progress of one training inside a stage that may run several."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.stage import Progress


@dataclass(frozen=True)
class ProgressSlice:
    """One training's part of a stage's progress, in images.

    Attributes:
        progress: The stage's progress reporter.
        before: Images that earlier trainings of the stage went through.
        total: Images that all trainings of the stage go through.
    """

    progress: Progress
    before: int = 0
    total: int = 0

    def update(self, done: int, **figures: float | str) -> None:
        """Report `done` images of this training, with figures to show beside them."""
        self.progress.update(self.before + done, self.total, unit="images", **figures)

    def note(self, text: str) -> None:
        """Report a line of text."""
        self.progress.note(text)


def images_seen(epochs: int, batch_size: int, image_count: int) -> int:
    """Return how many images `fit` goes through: whole batches only, in every epoch."""
    return epochs * (image_count // batch_size) * batch_size
