"""Batch normalization that accepts a batch of one value per channel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override


class SingleValueBatchNorm(nn.BatchNorm2d):
    """Normalize like `nn.BatchNorm2d`, but accept a single value per channel in training.

    One image with a 1x1 map has no variance. It is normalized with the running statistics, as in
    evaluation, and does not change them. The arguments are those of `nn.BatchNorm2d`.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Normalize the maps.

        Args:
            input: (B, C, H, W) of any float dtype.

        Returns:
            (B, C, H, W) of the same dtype.
        """
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)
