"""Wide residual networks.

Zagoruyko and Komodakis, "Wide Residual Networks" (2016), table 1: depth 6n + 4, basic blocks with norm
and activation before each convolution, k times the width. The last norm and activation follow the
last stage: the pooling's input is after them, the last stage's map before them.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.cifar.staged import CifarNet, Stage, initialise


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3, parallel to the shortcut.

    If the shape changes, the shortcut is a 1x1 convolution of the input after its norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.downsample = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        activated = self.act1(self.bn1(x))
        inner: Tensor = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        return inner + (x if self.downsample is None else self.downsample(activated))


def wide_resnet(
    depth: int, factor: int, /, *, num_classes: int, in_chans: int = 3, global_pool: str = "avg"
) -> CifarNet:
    """Build WRN-depth-factor without dropout.

    Args:
        depth: 6n + 4 layers.
        factor: The widening factor k.
        num_classes: The number of classes.
        in_chans: Channels of the images.
        global_pool: timm's name of the pooling.
    """
    parts: dict[str, nn.Module] = {"conv1": nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)}
    stages = [Stage(("conv1",), 16, 1)]
    inputs = 16
    for number in range(3):
        width = 16 * factor * 2**number
        blocks = []
        for position in range((depth - 4) // 6):
            blocks.append(PreActivationBlock(inputs, width, 2 if number and not position else 1))
            inputs = width
        name = f"layer{number + 1}"
        parts[name] = nn.Sequential(*blocks)
        stages.append(Stage((name,), width, 2**number))
    parts |= {"bn": nn.BatchNorm2d(inputs), "act": nn.ReLU()}
    model = CifarNet(
        parts, stages, tail=("bn", "act"), features=inputs, num_classes=num_classes, global_pool=global_pool
    )
    return initialise(model)
