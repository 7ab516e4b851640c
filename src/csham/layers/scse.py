"""scSE: the channel and the spatial squeeze-and-excitation side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csham.layers.attention import Gate
from csham.layers.checks import check_count

__all__ = ["SCSE", "ChannelSE", "SpatialSE"]


class SCSE(Gate):
    """Concurrent spatial and channel squeeze and excitation: ``y = w ⊙ x + s ⊙ x = (w + s) ⊙ x``.

    The sum is the MICCAI paper's; the authors' released code takes the larger of the two products instead, one of the
    variants of their later journal paper.

    Args:
        channels: Channels of the feature map.
        reduction: Channels for each hidden one; the hidden ones are rounded down, at least 1.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Roy et al., "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks",
    MICCAI 2018, arXiv:1803.02579; the biases follow the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        self.channel = ChannelSE(channels, reduction, device=device, dtype=dtype)
        self.spatial = SpatialSE(channels, device=device, dtype=dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Return the sum of both weights of ``x``, (B, C, H, W), in (0, 2)."""
        return self.channel.weights(x)[:, :, None, None] + self.spatial.weights(x)


class ChannelSE(Gate):
    """cSE: ``w = σ(W2 ReLU(W1 mean_hw x + b1) + b2)``. Settings as in :class:`SCSE`."""

    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        check_count("ChannelSE", "reduction", reduction)
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, channels, device=device, dtype=dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C), in (0, 1)."""
        self._check(x)
        return self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()


class SpatialSE(Gate):
    """sSE: ``s = σ(conv1x1(x))``, one output channel. Settings as in :class:`SCSE`."""

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, 1, 1, device=device, dtype=dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W), in (0, 1)."""
        self._check(x)
        return self.conv(x).sigmoid()
