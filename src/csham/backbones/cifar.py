"""ResNets for 32-pixel images: those of He et al., and the wide ones of Zagoruyko and Komodakis."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from csham.errors import UserError

__all__ = ["CifarResNet", "WideResNet"]


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
        blocks = _even_stages((depth - 2) // 2)
        self.num_classes = num_classes
        self.num_features = third
        self.conv1 = nn.Conv2d(in_chans, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(_BasicBlock(first, first), first, blocks[0])
        self.layer2 = _stage(_BasicBlock(first, second), second, blocks[1])
        self.layer3 = _stage(_BasicBlock(second, third), third, blocks[2])
        self.fc = nn.Linear(third, num_classes) if num_classes else nn.Identity()
        _draw_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, (B, 64 * width, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        return self.fc(self.forward_features(x).mean((2, 3)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Say which parameters are a layer, as timm's networks do; those of none of them are the head's.

        Args:
            coarse: True for a layer of each stage, not of each block.
        """
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)\." if coarse else r"^layer(\d+)\.(\d+)\."}


class WideResNet(nn.Module):
    """ResNet of 6n + 4 layers with stages of 16k, 32k and 64k channels; its blocks normalise before they convolve.

    Without the dropout inside the blocks that the paper tries on some of its networks.

    Args:
        depth: Convolutions, those of the shortcuts included, 6n + 4 for stages of n blocks: 16, 22, 28, 40. With 6n + 6
            the last stage has a block more, with 6n + 8 the last two.
        width: k, how many times as many channels as the ResNets of :class:`CifarResNet`.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the images.

    Shape:
        (B, in_chans, H, W) to (B, num_classes).

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv:1605.07146, table 1.
    """

    def __init__(self, depth: int, width: float, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        if depth < 10 or depth % 2:
            raise UserError(f"WideResNet: depth must be even, at least 10 (16, 22, 28, 40), got {depth}.")
        first, second, third = (max(1, round(channels * width)) for channels in (16, 32, 64))
        blocks = _even_stages((depth - 4) // 2)
        self.num_classes = num_classes
        self.num_features = third
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(_PreActBlock(16, first, 1), first, blocks[0])
        self.layer2 = _stage(_PreActBlock(first, second, 2), second, blocks[1])
        self.layer3 = _stage(_PreActBlock(second, third, 2), third, blocks[2])
        self.norm = nn.BatchNorm2d(third)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(third, num_classes) if num_classes else nn.Identity()
        _draw_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, (B, 64 * width, H / 4, W / 4)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.act(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        return self.fc(self.forward_features(x).mean((2, 3)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Say which parameters are a layer, as timm's networks do; those of none of them are the head's.

        Args:
            coarse: True for a layer of each stage, not of each block.
        """
        last = (r"^norm\.", (99999,))  # timm's word for a part of the layer before
        blocks = [(r"^layer(\d+)\." if coarse else r"^layer(\d+)\.(\d+)\.", None), last]
        return {"stem": r"^conv1\.", "blocks": blocks}


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


class _PreActBlock(nn.Module):
    """timm's PreActBasic without its options, and without the seconds that importing timm takes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        projects = in_channels != channels
        self.downsample = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.act1(self.bn1(x))
        # As in the authors' code, a projection starts from the normalised map.
        shortcut = x if self.downsample is None else self.downsample(normalised)
        return self.conv2(self.act2(self.bn2(self.conv1(normalised)))) + shortcut


def _stage(first: nn.Module, channels: int, blocks: int) -> nn.Sequential:
    """Put blocks of the same kind, which keep the map's shape, after the first."""
    return nn.Sequential(first, *(type(first)(channels, channels) for _ in range(blocks - 1)))


def _even_stages(blocks: int) -> list[int]:
    """Divide blocks among three stages, those that are left over to the last."""
    return [blocks // 3 + (blocks % 3 >= 3 - stage) for stage in range(3)]


def _draw_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
