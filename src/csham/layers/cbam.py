"""CBAM and its light variant: timm's on the kernels, with parts whose weights can be asked for and lent.

The parts hold nothing that timm's do not, so that a part of timm's can become one of these
(:mod:`csham.layers.accelerated`).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.activations import Sigmoid
from timm.layers.cbam import ChannelAttn, LightChannelAttn, LightSpatialAttn, SpatialAttn
from timm.layers.conv_bn_act import ConvNormAct
from torch import Tensor, nn

from csham import ops
from csham.layers.attention import ChannelStep, SpatialStep, TwoSteps, is_plain
from csham.layers.checks import check_channels, check_count, check_input, check_odd
from csham.layers.norm import BatchNorm2d
from csham.layers.opaque import Opaque, Unscriptable
from csham.layers.opening import open_gate
from csham.ops.calls import has_hooks

__all__ = ["CBAM", "CBAMChannel", "CBAMSpatial", "CBAMSteps", "LightCBAM", "LightCBAMChannel", "LightCBAMSpatial"]


class CBAMChannel(Unscriptable, ChannelStep, ChannelAttn):
    """Scale the channels: ``w = σ(MLP(mean_hw x) + MLP(max_hw x))``."""

    def weights(self, x: Tensor, source: ops.Source | None = None) -> Tensor:
        """Return the channel weights of ``x``, (B, C), of which a norm's input may be read instead."""
        check_input(type(self).__name__, x, self.fc1.in_channels)
        return self._weigh(ops.pool_channels(x, maximum=True, source=source))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W)."""
        # What stands for a map where torch.fx traces has no shape to be checked.
        return self.attend(x) if isinstance(x, Tensor) else super().forward(x)

    def _scale(self, x: Tensor, shortcut: Tensor | None, source: ops.Source | None) -> tuple[Tensor, Tensor]:
        check_input(type(self).__name__, x, self.fc1.in_channels)
        pooled = ops.pool_channels(x, maximum=True, source=source)
        weights = self._weigh(pooled)
        return pooled.scale(weights, shortcut), weights

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.fc2, self.fc2, gate=self.gate)  # of the average and of the maximum

    def _weigh(self, pooled: ops.Pooled) -> Tensor:
        average, maximum = _statistics(pooled)
        average = self.fc2(self.act(self.fc1(average[:, :, None, None])))
        maximum = self.fc2(self.act(self.fc1(maximum[:, :, None, None])))
        return self.gate(average + maximum)[:, :, 0, 0]


class LightCBAMChannel(CBAMChannel, LightChannelAttn):
    """Scale the channels: ``w = σ(MLP((mean_hw x + max_hw x) / 2))``."""

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.fc2)

    def _weigh(self, pooled: ops.Pooled) -> Tensor:
        average, maximum = _statistics(pooled)
        joined = 0.5 * average + 0.5 * maximum
        return self.fc2(self.act(self.fc1(joined[:, :, None, None]))).sigmoid()[:, :, 0, 0]


class _Spatial(Unscriptable, SpatialStep, nn.Module):
    """Base class of the spatial steps; put before one of timm's.

    Attributes:
        conv: timm's convolution with its norm.
        gate: Module that makes weights of their output.
    """

    conv: Any
    gate: nn.Module

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W)."""
        return self._weigh(ops.pool_positions(x))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions of ``x``, (B, C, H, W)."""
        return self.attend(x) if isinstance(x, Tensor) else super().forward(x)

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        block = self.conv
        open_gate(block.conv if isinstance(block.bn, nn.Identity) else block.bn, gate=self.gate)

    def _scale(
        self, x: Tensor, shortcut: Tensor | None, channel_weights: Tensor | None, source: ops.Source | None
    ) -> Tensor:
        pooled = ops.pool_positions(x, channel_weights, source)
        return pooled.scale(self._weigh(pooled), shortcut)

    def _weigh(self, pooled: ops.Pooled) -> Tensor:
        # Of a single value, some norms that could be here make nothing.
        if pooled.kernels is not None and pooled.mean.numel() > 1 and self._is_plain():
            return ops.spatial_weights_of(pooled, self._filter(self.conv.conv.weight), self.conv.bn)
        return self.gate(self.conv(self._join(*_statistics(pooled))))

    def _is_plain(self) -> bool:
        """Return True if the weights are a sigmoid of a norm of a convolution, and there are no hooks in between."""
        block, gate = self.conv, self.gate
        return (
            type(block) is ConvNormAct
            and type(gate) in (nn.Sigmoid, Sigmoid)
            and type(block.aa) in (type(None), nn.Identity)
            and _is_plain_conv(block.conv)
            and not any(has_hooks(module) for module in (block, block.conv, gate))
        )

    def _join(self, average: Tensor, maximum: Tensor) -> Tensor:
        raise NotImplementedError

    def _filter(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class CBAMSpatial(_Spatial, SpatialAttn):
    """Scale the positions: ``s = σ(BN(conv7x7([mean_c x ; max_c x])))``."""

    def _join(self, average: Tensor, maximum: Tensor) -> Tensor:
        return torch.cat([average, maximum], 1)

    def _filter(self, weight: Tensor) -> Tensor:
        return weight


class LightCBAMSpatial(_Spatial, LightSpatialAttn):
    """Scale the positions: ``s = σ(BN(conv7x7((mean_c x + max_c x) / 2)))``."""

    def _join(self, average: Tensor, maximum: Tensor) -> Tensor:
        return 0.5 * average + 0.5 * maximum

    def _filter(self, weight: Tensor) -> Tensor:
        return 0.5 * weight.expand(1, 2, -1, -1)


class CBAMSteps(Unscriptable, TwoSteps, nn.Module):
    """A channel step, then a spatial step, in two passes over the map and one that scales it."""

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
        """Apply both steps to ``x``, (B, C, H, W), the second with the weights of the first where it can."""
        channel, spatial = self.channel, self.spatial
        plain = is_plain(channel, *_CHANNEL_STEPS) and is_plain(spatial, *_SPATIAL_STEPS)
        if plain and connection == "sequential" and ops.has_kernels(x):
            return spatial.attend(x, shortcut, channel.weights(x, source), source=source)
        return super().attend(x, shortcut, connection)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels, then the positions of ``x``, (B, C, H, W)."""
        return self.attend(x)


def _statistics(pooled: ops.Pooled) -> tuple[Tensor, Tensor]:
    """The mean and the maximum, in the type of the map, which is what timm's layers are given."""
    assert pooled.max is not None
    return pooled.mean.to(pooled.x.dtype), pooled.max.to(pooled.x.dtype)


def _is_plain_conv(conv: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and conv.out_channels == 1
        and conv.stride == conv.dilation == (1, 1)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.padding == (conv.kernel_size[0] // 2,) * 2
        and conv.padding_mode == "zeros"
    )


_CHANNEL_STEPS = (CBAMChannel, LightCBAMChannel)
_SPATIAL_STEPS = (CBAMSpatial, LightCBAMSpatial)


class CBAM(Opaque, CBAMSteps):
    """Convolutional block attention module: the channel step, then the spatial step.

    timm's ``CbamModule``: its parameters, state_dict keys and outputs. A map of one pixel in a batch of one, which timm
    refuses in training, is normalised by the running statistics, and these are unbiased from the first batch on. The
    paper's formulas have no norm (``spatial_norm=False``); the code that its authors released has one, and biases
    (``mlp_bias=True``).

    Args:
        channels: Channels of the feature map.
        rd_ratio: Hidden channels for each channel.
        rd_channels: Hidden channels, instead of ``rd_ratio``.
        rd_divisor: Number to a multiple of which the hidden channels are rounded.
        spatial_kernel_size: Side of the spatial step's filter; odd.
        act_layer: Activation of the hidden channels.
        gate_layer: Name or class of the gate.
        mlp_bias: True if the hidden and the output channels have biases.
        spatial_norm: True if a batch norm follows the spatial step's filter.
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
        spatial_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_settings("CBAM", channels, rd_channels, spatial_kernel_size)
        self.channel = CBAMChannel(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, gate_layer, mlp_bias, device=device, dtype=dtype
        )
        self.spatial = CBAMSpatial(spatial_kernel_size, gate_layer, device=device, dtype=dtype)
        self.spatial.conv.bn = BatchNorm2d(1, device=device, dtype=dtype) if spatial_norm else nn.Identity()


class LightCBAM(Opaque, CBAMSteps):
    """timm's light variant of CBAM, which adds the average and the maximum up before each step's layers.

    Settings, shape and errors as in :class:`CBAM`, without ``gate_layer``, which timm's ignores, and
    ``spatial_norm``. Source: timm.
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
        self.channel = LightCBAMChannel(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, mlp_bias=mlp_bias, device=device, dtype=dtype
        )
        self.spatial = LightCBAMSpatial(spatial_kernel_size, device=device, dtype=dtype)
        self.spatial.conv.bn = BatchNorm2d(1, device=device, dtype=dtype)


def _check_settings(layer: str, channels: int, rd_channels: int | None, spatial_kernel_size: int) -> None:
    check_channels(layer, channels)
    check_odd(layer, "spatial_kernel_size", spatial_kernel_size)
    if rd_channels is not None:
        check_count(layer, "rd_channels", rd_channels)
