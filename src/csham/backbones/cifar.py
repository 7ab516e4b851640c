"""The ResNets of He et al. for 32-pixel images."""

from __future__ import annotations

from torch import Tensor, nn

from csham.errors import UserError

__all__ = ["CifarResNet", "even_stages"]


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers with stages of 16, 32 and 64 channels, each halving the map of the one before.

    Shortcuts that change the number of channels are projections (the paper's option B); the paper's own CIFAR networks
    pad with zeros there (option A), which saves ResNet-20 2,752 parameters.

    Args:
        depth: Weight layers, 6n + 2 for stages of n blocks: 20, 32, 44, 56, 110. With 6n + 4 the last stage has a block
            more, with 6n + 6 the last two.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the images.
        width: Factor on the channels.

    Shape:
        (B, in_chans, H, W), H and W of at least 4, to (B, num_classes).

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        if depth < 8 or depth % 2:
            raise UserError(f"CifarResNet: depth must be even, at least 8 (20, 32, 44, 56, 110), got {depth}.")
        first, second, third = (max(1, round(channels * width)) for channels in (16, 32, 64))
        blocks = even_stages((depth - 2) // 2)
        self.num_classes = num_classes
        self.num_features = third
        self.conv1 = nn.Conv2d(in_chans, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(first, first, blocks[0])
        self.layer2 = _stage(first, second, blocks[1])
        self.layer3 = _stage(second, third, blocks[2])
        self.fc = nn.Linear(third, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, (B, 64 * width, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        return self.fc(self.forward_features(x).mean((2, 3)))


def even_stages(blocks: int) -> list[int]:
    """Divide blocks among three stages, those that are left over to the last."""
    return [blocks // 3 + (blocks % 3 >= 3 - stage) for stage in range(3)]


class _BasicBlock(nn.Module):
    """timm's BasicBlock without its options, and without the seconds that importing timm takes."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        stride = channels // in_channels
        shortcut = None
        if stride > 1:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.act2(x)


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(in_channels, channels), *(_BasicBlock(channels, channels) for _ in range(blocks - 1))
    )
