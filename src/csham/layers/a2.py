"""A²: gather features of the whole map, and distribute them to each position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csham.layers.checks import check_channels, check_count, check_input
from csham.layers.opaque import Opaque

__all__ = ["DoubleAttention"]


class DoubleAttention(Opaque, nn.Module):
    """Double attention block: ``y = x + conv1x1(Z)``, ``Z = [φ(x) softmax(θ(x))ᵀ] softmax(ρ(x))``.

    φ, θ and ρ are 1x1 convolutions to M channels. The first softmax runs over the positions, so that each of M
    descriptors is gathered from the whole map; the second over the descriptors, so that each position takes its
    mixture. Nothing is scaled: this attention has no weights to look at.

    Args:
        channels: Channels of the feature map.
        reduction: C / M; M is rounded down, at least 1. The paper has two sizes; one for both, and the 4, are ours.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Chen et al., "A²-Nets: Double Attention Networks", NeurIPS 2018, arXiv:1810.11579.
    """

    gate_kind: str | None = None

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels("DoubleAttention", channels)
        check_count("DoubleAttention", "reduction", reduction)
        self.channels = channels
        hidden = max(channels // reduction, 1)
        self.phi = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.theta = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.rho = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.out = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Add to ``x``, (B, C, H, W), what each of its positions takes from the whole."""
        check_input("DoubleAttention", x, self.channels)
        features = self.phi(x).flatten(2)  # (B, M, H W)
        gather = self.theta(x).flatten(2).softmax(2)
        distribute = self.rho(x).flatten(2).softmax(1)
        taken = features @ gather.transpose(1, 2) @ distribute
        return x + self.out(taken.unflatten(2, x.shape[2:])).to(x.dtype)

    def extra_repr(self) -> str:
        """Name the setting that the children do not show."""
        return f"channels={self.channels}"
