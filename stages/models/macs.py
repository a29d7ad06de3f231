"""The multiply-accumulates of a forward pass of one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, image_size: int, channels: int) -> int:
    """Count the multiply-accumulates of one image in eval mode: convolutions, matrix products, attention.

    The count is half of that of torch's FlopCounterMode, for which a multiply-accumulate is two operations.
    Norms, activations and pooling do not count, like in published figures.

    Args:
        model: The network.
        image_size: Side of its input, pixels.
        channels: Channels of the images.
    """
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    model.eval()
    try:
        # The counter does not support all fused attention kernels, but it supports the plain form.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2
