"""BAM: channel and spatial logits added, then one gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csham.layers.attention import Gate
from csham.layers.checks import check_count
from csham.layers.norm import BatchNorm2d

__all__ = ["BAM", "BAMChannel", "BAMSpatial"]


class BAM(Gate):
    """Bottleneck attention module: ``y = (1 + σ(channel logits + spatial logits)) ⊙ x``, eq. 1 and 2.

    The equations are the paper's, a batch norm at the end of each branch among them (eq. 3 and 4). Inside the branches
    every hidden layer is followed by batch norm and ReLU, as in the authors' released code. That code departs from the
    paper: it multiplies the two logits and has no norm at the branches' ends.

    Args:
        channels: Channels of the feature map.
        reduction: Channels for each hidden one; the hidden ones are rounded down, at least 1.
        dilation: Dilation of the spatial branch's two 3x3 convolutions.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Park et al., "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514, eq. 1 to 4, and the authors'
    released code.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        dilation: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        self.channel = BAMChannel(channels, reduction, device=device, dtype=dtype)
        self.spatial = BAMSpatial(channels, reduction, dilation=dilation, device=device, dtype=dtype)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (1, 2)."""
        return 1 + (self.channel.logits(x)[:, :, None, None] + self.spatial.logits(x)).sigmoid()


class BAMChannel(Gate):
    """BAM's channel branch; alone, ``y = (1 + σ(logits)) ⊙ x``.

    ``logits = BN(W1 ReLU(BN(W0 mean_hw x + b0)) + b1)``, eq. 3. Settings as in :class:`BAM`.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = _hidden("BAMChannel", channels, reduction)
        self.mlp = nn.Sequential(
            *_convolution(channels, hidden, 1, place),
            nn.Conv2d(hidden, channels, 1, **place),
            BatchNorm2d(channels, **place),
        )

    def logits(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x`` before the sigmoid, (B, C)."""
        self._check(x)
        return self.mlp(x.mean((2, 3), keepdim=True))[:, :, 0, 0]

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C), in (1, 2)."""
        return 1 + self.logits(x).sigmoid()


class BAMSpatial(Gate):
    """BAM's spatial branch; alone, ``y = (1 + σ(logits)) ⊙ x``.

    ``logits = BN(conv1x1(conv3x3(conv3x3(conv1x1(x)))))``, eq. 4, the hidden convolutions with batch norm and ReLU.
    Settings as in :class:`BAM`.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        dilation: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        check_count("BAMSpatial", "dilation", dilation)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = _hidden("BAMSpatial", channels, reduction)
        self.convs = nn.Sequential(
            *_convolution(channels, hidden, 1, place),
            *_convolution(hidden, hidden, 3, place, dilation),
            *_convolution(hidden, hidden, 3, place, dilation),
            nn.Conv2d(hidden, 1, 1, **place),
            BatchNorm2d(1, **place),
        )

    def logits(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x`` before the sigmoid, (B, 1, H, W)."""
        self._check(x)
        return self.convs(x)

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W), in (1, 2)."""
        return 1 + self.logits(x).sigmoid()


def _hidden(layer: str, channels: int, reduction: int) -> int:
    check_count(layer, "reduction", reduction)
    return max(channels // reduction, 1)


def _convolution(
    channels: int, hidden: int, kernel_size: int, place: dict[str, Any], dilation: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(channels, hidden, kernel_size, padding=padding, dilation=dilation, **place)
    return conv, BatchNorm2d(hidden, **place), nn.ReLU()
