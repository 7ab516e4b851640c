"""CSHAM: channel attention, then spatial attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csham import ops
from csham.layers.attention import TwoSteps, is_plain
from csham.layers.channel import ChannelAttention
from csham.layers.checks import check_input
from csham.layers.opaque import Opaque
from csham.layers.spatial import SpatialAttention

__all__ = ["CSHAM", "csham_linear"]


class CSHAM(Opaque, TwoSteps, nn.Module):
    """Channel-spatial hybrid attention module: the channel step, then the spatial step.

    ``y = s(w ⊙ x) ⊙ w ⊙ x``. The other orders, and weights that one module lends to another, are strategies of
    :func:`csham.attach`. ``4 * kernel_size + 9 * channels + 105`` parameters.

    Args:
        channels: Channels of the feature map.
        kernel_size: Length of the channel step's filters; odd.
        act: ``"relu"`` as in the authors' layer classes or None as in their functional version.
        dropout: Probability of dropout in the spatial step.
        open_gates: True to start the weights of both near 1 (ours), where the authors' start near 1/2.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Examples:
        >>> import timm
        >>> model = timm.create_model("resnet50", block_args=dict(attn_layer=CSHAM))

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        act: str | None = "relu",
        *,
        dropout: float = 0.0,
        open_gates: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel = ChannelAttention(channels, kernel_size, act, open_gates=open_gates, **place)
        self.spatial = SpatialAttention(channels, act, dropout=dropout, open_gates=open_gates, **place)

    def open_gates(self) -> None:
        """Let the weights of both steps start near 1."""
        self.channel.open_gates()
        self.spatial.open_gates()

    def attend(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        connection: str = "sequential",
        *,
        source: ops.Source | None = None,
    ) -> Tensor:
        """Apply both steps to ``x``, (B, C, H, W), in one call where nothing watches them."""
        channel, spatial = self.channel, self.spatial
        if not (is_plain(channel, ChannelAttention) and is_plain(spatial, SpatialAttention)):
            return super().attend(x, shortcut, connection)
        check_input("CSHAM", x, channel.channels)
        return ops.hybrid_attention(x, channel.operands(), spatial.operands(), connection, shortcut, source)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels, then the positions of ``x``, (B, C, H, W)."""
        return self.attend(x)


csham_linear = partial(CSHAM, act=None)
"""The module without ReLU."""
