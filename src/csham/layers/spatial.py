"""Spatial attention with neighbour enhancement: which positions matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csham import ops
from csham.layers.attention import SpatialStep
from csham.layers.checks import check_channels, check_dropout, check_input, create_activation
from csham.layers.norm import BatchNorm2d
from csham.layers.opaque import Opaque
from csham.layers.opening import open_gate
from csham.ops.calls import filter_of

__all__ = ["SpatialAttention"]


class SpatialAttention(Opaque, SpatialStep, nn.Module):
    """Scale each position by a weight computed from its own statistics and from a coarser view of its surroundings.

    ``y = s ⊙ x`` with ``s`` of :func:`csham.ops.spatial_weights`. ``9 * channels + 102`` parameters.

    Args:
        channels: Channels of the feature map.
        act: ``"relu"`` as in the authors' layer class or None as in their functional version.
        dropout: Probability of dropout between the 7x7 convolution and its batch norm; the authors use 0.3 on
            MobileNetV2 and none elsewhere.
        open_gates: True to start the weights near 1 (ours), where the authors' start near 1/2.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept. Where a side is 1 the
        surroundings are left out.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        act: str | None = "relu",
        *,
        dropout: float = 0.0,
        open_gates: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels("SpatialAttention", channels)
        check_dropout("SpatialAttention", dropout)
        self.channels = channels
        self.main = nn.Conv2d(2, 1, 7, padding=3, bias=False, device=device, dtype=dtype)
        # TensorFlow's epsilon and momentum.
        self.main_bn = BatchNorm2d(1, eps=1e-3, momentum=0.01, device=device, dtype=dtype)
        self.neighbor = nn.Conv2d(channels, 1, 3, stride=2, bias=False, device=device, dtype=dtype)
        self.neighbor_bn = BatchNorm2d(1, eps=1e-3, momentum=0.01, device=device, dtype=dtype)
        self.act = create_activation(act)
        self.dropout = nn.Dropout(dropout) if dropout else None
        if open_gates:
            self.open_gates()

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.main_bn)

    def operands(self) -> ops.SpatialParameters:
        """Return what the functions of :mod:`csham.ops` take."""
        (main, _), (neighbor, _) = filter_of(self.main), filter_of(self.neighbor)
        return ops.SpatialParameters(main, self.main_bn, neighbor, self.neighbor_bn, self.act, self.dropout)

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W), without applying them."""
        check_input("SpatialAttention", x, self.channels)
        return ops.spatial_weights(x, *self.operands())

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions of ``x``, (B, C, H, W)."""
        return self.attend(x)

    def extra_repr(self) -> str:
        """Name the setting that the children do not show."""
        return f"channels={self.channels}"

    def _scale(
        self, x: Tensor, shortcut: Tensor | None, channel_weights: Tensor | None, source: ops.Source | None
    ) -> Tensor:
        check_input("SpatialAttention", x, self.channels)
        return ops.spatial_attention(x, self.operands(), channel_weights, shortcut, source)
