"""The multiply-accumulates of one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, image_size: int, channels: int) -> int:
    """Multiply-accumulates of one image, in eval mode: convolutions, matrix products and attention.

    Half of what torch's FlopCounterMode counts, which counts a multiply-accumulate as two. Norms,
    activations and pooling are left out, as in the figures papers give.
    """
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    model.eval()
    try:
        # The fused attention kernels are not all known to the counter; their plain form is.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2
