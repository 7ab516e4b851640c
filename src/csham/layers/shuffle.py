"""Shuffle attention: groups of channels, half of each gated by channel, half by position, then shuffled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham.errors import UserError
from csham.layers.attention import Gate
from csham.layers.checks import check_count, largest_divisor
from csham.layers.norm import GroupNorm
from csham.layers.opening import OPEN

__all__ = ["ShuffleAttention"]


class ShuffleAttention(Gate):
    """Scale each half of every group of channels by its own kind of weights, then interleave the channels.

    In each group the first half of the channels has ``w = σ(a mean_hw x + b)``, the second ``s = σ(a' GN(x) + b')``
    with a norm of each channel; all groups share the parameters. ``y = shuffle(weights(x) ⊙ x)``: the channels come out
    in another order, the first of the first half of all channels, the first of the second half, and so on. state_dict
    keys are those of the authors' released code.

    Args:
        channels: Channels of the feature map; even.
        groups: Groups; where they do not divide half the channels, the largest number below that does.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: An odd number of channels, another setting or an input that cannot work; a ``ValueError``.

    Source: Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021,
    arXiv:2102.00240; initial values and shuffling follow the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        check_count("ShuffleAttention", "groups", groups)
        if channels % 2:
            raise UserError(
                f"ShuffleAttention: needs an even number of channels, half for each kind of weights, got {channels}. "
                "Use another attention here."
            )
        self.groups = largest_divisor(channels // 2, groups)
        half = channels // (2 * self.groups)
        self.cweight = nn.Parameter(torch.zeros(1, half, 1, 1, device=device, dtype=dtype))
        self.cbias = nn.Parameter(torch.ones(1, half, 1, 1, device=device, dtype=dtype))
        self.sweight = nn.Parameter(torch.zeros(1, half, 1, 1, device=device, dtype=dtype))
        self.sbias = nn.Parameter(torch.ones(1, half, 1, 1, device=device, dtype=dtype))
        self.gn = GroupNorm(half, half, device=device, dtype=dtype)

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        nn.init.constant_(self.cbias, OPEN)
        nn.init.constant_(self.sbias, OPEN)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (0, 1), in the order of its channels."""
        self._check(x)
        B, C, H, W = x.shape
        first, second = x.reshape(B * self.groups, C // self.groups, H, W).chunk(2, 1)
        channel = (self.cweight * first.mean((2, 3), keepdim=True) + self.cbias).sigmoid()
        spatial = (self.sweight * self.gn(second) + self.sbias).sigmoid()
        return torch.cat([channel.expand_as(spatial), spatial], 1).reshape(B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``, (B, C, H, W), and interleave its channels."""
        return F.channel_shuffle(super().forward(x), 2)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{super().extra_repr()}, groups={self.groups}"
