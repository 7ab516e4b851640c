"""LeNet-5, the network that convolutions for images began with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """Two convolutions of 5x5, each with pooling, and three fully connected layers.

    Layers and sizes are the paper's. As usual today every map of the second convolution sees all maps of the first,
    pooling takes the maximum and the output is linear; the paper has a connection table, a trainable average and radial
    basis functions there. The activation is a tanh, as in the paper but unscaled: without batch norm it learns at the
    recipes' learning rates, where rectified units do not.

    Args:
        num_classes: Width of the logits; 0 leaves the 84 features.
        in_chans: Channels of the images.
        width: Factor on the channels and features of every layer but the last.

    Shape:
        (B, in_chans, H, W), H and W of at least 16, to (B, num_classes). Made for 32 x 32; the maps of other sizes are
        averaged into 5 x 5 before the fully connected layers.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998, section
    II.B.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth = (max(1, round(features * width)) for features in (6, 16, 120, 84))
        self.num_classes = num_classes
        self.num_features = fourth
        self.conv1 = nn.Conv2d(in_chans, first, 5)
        self.act1 = nn.Tanh()
        self.conv2 = nn.Conv2d(first, second, 5)
        self.act2 = nn.Tanh()
        self.fc1 = nn.Linear(second * 5 * 5, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc = nn.Linear(fourth, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps before the fully connected layers, (B, 16 * width, (H - 12) // 4, (W - 12) // 4)."""
        x = F.max_pool2d(self.act1(self.conv1(x)), 2)
        return F.max_pool2d(self.act2(self.conv2(x)), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        x = self.forward_features(x)
        if x.shape[-2:] != (5, 5):
            x = F.adaptive_avg_pool2d(x, 5)
        x = torch.tanh(self.fc1(x.flatten(1)))
        return self.fc(torch.tanh(self.fc2(x)))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Say which parameters are a layer, as timm's networks do; those of none of them are the head's.

        Args:
            coarse: Without a meaning here, where every layer stands alone.
        """
        return {"convolutions": r"^conv(\d+)\.", "connected": r"^fc(\d+)\."}
