"""EMA: one spatial map for each group of channels, from two scales that explain each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csham.layers.attention import Gate
from csham.layers.checks import check_count, largest_divisor
from csham.layers.norm import GroupNorm

__all__ = ["EMA"]


class EMA(Gate):
    """Efficient multi-scale attention with cross-spatial learning.

    Each group of channels ``g`` is looked at in two ways: ``u = GN(g ⊙ σ(rows) ⊙ σ(columns))``, rows and columns being
    the means over the other axis behind one shared 1x1 convolution, and ``v = conv3x3(g)``. The weights of the group,
    one for each position, are ``s = σ(softmax_c(mean_hw u) · v + softmax_c(mean_hw v) · u)``, and ``y = s ⊙ g``. All
    groups share the parameters, whose state_dict keys are those of the authors' released code.

    Args:
        channels: Channels of the feature map.
        groups: Groups; where they do not divide the channels, the largest number below that does.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023,
    arXiv:2305.13563, and the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        check_count("EMA", "groups", groups)
        self.groups = largest_divisor(channels, groups)
        width = channels // self.groups
        self.gn = GroupNorm(width, width, device=device, dtype=dtype)
        self.conv1x1 = nn.Conv2d(width, width, 1, device=device, dtype=dtype)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1, device=device, dtype=dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (0, 1), the same for all channels of a group."""
        self._check(x)
        B, C, H, W = x.shape
        group = x.reshape(B * self.groups, C // self.groups, H, W)
        sides = torch.cat([group.mean(3, keepdim=True), group.mean(2, keepdim=True).mT], 2)  # (B G, C / G, H + W, 1)
        rows, columns = self.conv1x1(sides).sigmoid().split([H, W], 2)
        wide = self.gn(group * rows * columns.mT)
        local = self.conv3x3(group)
        weights = (_mix(wide, local) + _mix(local, wide)).sigmoid()
        return weights.reshape(B, self.groups, 1, H, W).expand(-1, -1, C // self.groups, -1, -1).reshape(B, C, H, W)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{super().extra_repr()}, groups={self.groups}"


def _mix(judge: Tensor, maps: Tensor) -> Tensor:
    """Add the channels of ``maps`` up, (N, c, H, W) to (N, H, W), by the softmax of the means of ``judge``."""
    return torch.einsum("nc,nchw->nhw", judge.mean((2, 3)).softmax(1), maps)
