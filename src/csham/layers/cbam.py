"""CBAM and its light variant: timm's, with parts whose weights can be asked for."""

from __future__ import annotations

import torch
from timm.layers.cbam import ChannelAttn, LightChannelAttn, LightSpatialAttn, SpatialAttn
from torch import Tensor, nn

from csham import ops
from csham.layers.checks import check_channels, check_count, check_input, check_odd
from csham.layers.norm import BatchNorm2d

__all__ = ["CBAM", "LightCBAM"]


class _Channel(ChannelAttn):
    """Scale the channels: ``w = σ(MLP(mean_hw x) + MLP(max_hw x))``."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C)."""
        check_input("CBAM", x, self.fc1.in_channels)
        average = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        maximum = self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True))))
        return self.gate(average + maximum)[:, :, 0, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))


class _LightChannel(LightChannelAttn):
    """Scale the channels: ``w = σ(MLP((mean_hw x + max_hw x) / 2))``."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C)."""
        check_input("LightCBAM", x, self.fc1.in_channels)
        pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        return self.fc2(self.act(self.fc1(pooled))).sigmoid()[:, :, 0, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))


class _Spatial(SpatialAttn):
    """Scale the positions: ``s = σ(BN(conv7x7([mean_c x ; max_c x])))``."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W)."""
        return self.gate(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions of ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))


class _LightSpatial(LightSpatialAttn):
    """Scale the positions: ``s = σ(BN(conv7x7((mean_c x + max_c x) / 2)))``."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W)."""
        return self.gate(self.conv(0.5 * x.mean(1, keepdim=True) + 0.5 * x.amax(1, keepdim=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions of ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))


class CBAM(nn.Module):
    """Convolutional block attention module: the channel step, then the spatial step.

    timm's ``CbamModule``: its parameters, state_dict keys and outputs. A map of one pixel in a batch of one, which timm
    refuses in training, is normalised by the running statistics.

    Args:
        channels: Channels of the feature map.
        rd_ratio: Hidden channels for each channel.
        rd_channels: Hidden channels, instead of ``rd_ratio``.
        rd_divisor: What the hidden channels are rounded to a multiple of.
        spatial_kernel_size: Side of the spatial step's filter; odd.
        act_layer: Activation of the hidden channels.
        gate_layer: Name or class of the gate.
        mlp_bias: Whether the hidden and the output channels have biases.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521, and timm.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: type[nn.Module] = nn.ReLU,
        gate_layer: str | type[nn.Module] = "sigmoid",
        mlp_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_settings("CBAM", channels, rd_channels, spatial_kernel_size)
        self.channel = _Channel(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, gate_layer, mlp_bias, device=device, dtype=dtype
        )
        self.spatial = _Spatial(spatial_kernel_size, gate_layer, device=device, dtype=dtype)
        self.spatial.conv.bn = BatchNorm2d(1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels, then the positions of ``x``, (B, C, H, W)."""
        return self.spatial(self.channel(x))


class LightCBAM(nn.Module):
    """timm's light variant of CBAM, which adds the average and the maximum up before each step's layers.

    Settings, shape and errors as in :class:`CBAM`, without ``gate_layer``, which timm's ignores. Source: timm.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: type[nn.Module] = nn.ReLU,
        mlp_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_settings("LightCBAM", channels, rd_channels, spatial_kernel_size)
        self.channel = _LightChannel(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, mlp_bias=mlp_bias, device=device, dtype=dtype
        )
        self.spatial = _LightSpatial(spatial_kernel_size, device=device, dtype=dtype)
        self.spatial.conv.bn = BatchNorm2d(1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels, then the positions of ``x``, (B, C, H, W)."""
        return self.spatial(self.channel(x))


def _check_settings(layer: str, channels: int, rd_channels: int | None, spatial_kernel_size: int) -> None:
    check_channels(layer, channels)
    check_odd(layer, "spatial_kernel_size", spatial_kernel_size)
    if rd_channels is not None:
        check_count(layer, "rd_channels", rd_channels)
