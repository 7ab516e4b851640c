"""Triplet attention: the map looked at from its three sides."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from csham.layers.attention import Gate
from csham.layers.checks import check_odd
from csham.layers.norm import BatchNorm2d
from csham.layers.opening import open_gate

__all__ = ["TripletAttention"]


class TripletAttention(Gate):
    """Scale each value by the mean of three gates, each computed with one of C, H, W pooled away.

    ``y = (s_cw + s_hc + s_hw) / 3 ⊙ x``, each ``s = σ(BN(conv([max ; mean])))`` from the maximum and the mean over the
    axis that it lacks. 300 parameters, whatever the number of channels. The gradient of a maximum is shared evenly
    among equal values. state_dict keys are those of the authors' released code.

    Args:
        channels: Channels of the feature map.
        kernel_size: Side of the three filters; odd.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Misra et al., "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021, arXiv:2010.03045; the
    batch norm's momentum follows the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        check_odd("TripletAttention", "kernel_size", kernel_size)
        self.cw = _Side(kernel_size, device, dtype)
        self.hc = _Side(kernel_size, device, dtype)
        self.hw = _Side(kernel_size, device, dtype)

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        for side in (self.cw, self.hc, self.hw):
            open_gate(side.conv.bn)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (0, 1)."""
        self._check(x)
        over_height = self.cw(x.amax(2), x.mean(2))[:, :, None]  # (B, C, 1, W)
        over_width = self.hc(x.amax(3).mT, x.mean(3).mT).mT[:, :, :, None]  # (B, C, H, 1)
        over_channels = self.hw(x.amax(1), x.mean(1))[:, None]  # (B, 1, H, W)
        return (over_height + over_width + over_channels) / 3


class _Side(nn.Module):
    """One gate, from two (B, rows, columns) statistics to (B, rows, columns)."""

    def __init__(self, kernel_size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        norm = BatchNorm2d(1, momentum=0.01, device=device, dtype=dtype)
        self.conv = nn.Sequential(OrderedDict(conv=conv, bn=norm))

    def forward(self, maximum: Tensor, average: Tensor) -> Tensor:
        return self.conv(torch.stack([maximum, average], 1))[:, 0].sigmoid()
