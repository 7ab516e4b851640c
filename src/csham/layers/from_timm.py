"""timm's light attentions under the zoo's contract.

Parameters, state_dict keys and outputs are timm's. Added are the checks of settings and input, an output of the
input's type under autocast, empty batches, and ``gate_kind``, which says what :func:`csham.layers.record_weights` finds
at the module ``gate``. Those that scale channels by what their averages say run on the kernels.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, ClassVar

import torch
from timm import layers as timm_layers
from timm.layers.coord_attn import CoordAttn, EfficientLocalAttn, SimpleCoordAttn, StripAttn
from timm.layers.helpers import make_divisible
from timm.layers.mlp import ConvMlp
from torch import Tensor, nn

from csham import ops
from csham.errors import UserError
from csham.layers.accelerated import (
    AcceleratedCecaModule,
    AcceleratedEcaModule,
    AcceleratedEffectiveSEModule,
    AcceleratedSEModule,
)
from csham.layers.checks import check_channels, check_count, check_input, check_odd
from csham.layers.norm import BatchNorm2d, GroupNorm
from csham.layers.opaque import Opaque
from csham.layers.opening import open_gate

__all__ = [
    "AddedGlobalContext",
    "CircularEfficientChannelAttention",
    "CoordinateAttention",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EfficientLocalAttention",
    "GatherExcite",
    "GlobalContext",
    "HiddenEfficientChannelAttention",
    "SimpleCoordinateAttention",
    "SqueezeExcite",
    "StripAttention",
]


class _FromTimm(Opaque):
    """Base class put before a layer of timm's.

    Attributes:
        gate_kind: See :mod:`csham.layers.attention`.
    """

    gate_kind: str | None = "channel"
    # What timm's layer takes and does not use, or what would make another attention of it.
    _refused: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``inspect.signature`` tell the settings that have an effect; some of timm's layers take any."""
        super().__init_subclass__(**kwargs)
        named: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:
            init = dict(inspect.signature(vars(base)["__init__"]).parameters) if "__init__" in vars(base) else {}
            named = {**init, **named}
            if init and "settings" not in init:  # ours that take any settings hand them on to timm's
                break
        kept = (p for p in named.values() if p.name not in ("self", *cls._refused) and p.kind is not p.VAR_KEYWORD)
        # Settings of our own have no default place among timm's, and are keywords.
        cls.__signature__ = inspect.Signature(sorted(kept, key=lambda p: p.kind))  # type: ignore[attr-defined]

    def __init__(self, channels: int, **settings: Any) -> None:
        name = type(self).__name__
        check_channels(name, channels)
        for setting, value in settings.items():
            if setting == "kernel_size":
                check_odd(name, setting, value)
            elif setting == "rd_channels" and value is not None:
                check_count(name, setting, value)
        super().__init__(channels, **settings)  # type: ignore[call-arg]
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Attend to ``x``, (B, C, H, W)."""
        check_input(type(self).__name__, x, self.channels)
        if x.shape[0] == 0:  # the views of timm's ECA cannot be inferred from nothing
            return x.clone()
        return super().forward(x).to(x.dtype)  # type: ignore[misc]


class _Scaling(_FromTimm):
    """Base class put before a layer of timm's that scales channels on the kernels."""

    def attend(self, x: Tensor, shortcut: Tensor | None = None, *, source: ops.Source | None = None) -> Tensor:
        """Attend to ``x``, (B, C, H, W), and with a shortcut, a map like ``x``, return ``relu(y + shortcut)``."""
        check_input(type(self).__name__, x, self.channels)
        return super().attend(x, shortcut, source=source)  # type: ignore[misc]


class SqueezeExcite(_Scaling, AcceleratedSEModule):
    """``w = σ(W2 ReLU(W1 mean_hw x + b1) + b2)``.

    timm rounds the hidden channels to a multiple of 8. The paper does not (``rd_divisor=1``), and finds residual
    networks better without biases (``bias=False``). Source: Hu et al., arXiv:1709.01507, eq. 2 to 4.
    """

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.fc2, gate=self.gate)


class EffectiveSqueezeExcite(_Scaling, AcceleratedEffectiveSEModule):
    """``w = hardsigmoid(W mean_hw x + b)``.

    The paper has a sigmoid (``gate_layer="sigmoid"``). Source: Lee and Park, arXiv:1911.06667.
    """

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.fc, gate=self.gate)


class EfficientChannelAttention(_Scaling, AcceleratedEcaModule):
    """``w = σ(conv1d_k(mean_hw x))``, k chosen by the channels, at least 3. Source: Wang et al., arXiv:1910.03151."""

    _refused: ClassVar[tuple[str, ...]] = (
        "kernel_size",
        "use_mlp",
        "act_layer",
        "rd_ratio",
        "rd_channels",
        "rd_divisor",
    )

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.conv if self.conv2 is None else self.conv2, gate=self.gate)


class HiddenEfficientChannelAttention(EfficientChannelAttention):
    """As ECA, with a hidden layer between the mean and the filter. Source: timm."""

    _refused: ClassVar[tuple[str, ...]] = ("kernel_size", "use_mlp")

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(channels, use_mlp=True, **settings)


class CircularEfficientChannelAttention(_Scaling, AcceleratedCecaModule):
    """As ECA, the channels closed to a ring. Source: timm."""

    _refused: ClassVar[tuple[str, ...]] = ("kernel_size", "act_layer")

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.conv, gate=self.gate)


class GatherExcite(_FromTimm, timm_layers.GatherExcite):
    """``y = σ(MLP(pool x)) ⊙ x``, the pool a mean over the whole map or, with ``extent``, over parts of it.

    Without the MLP this is the paper's variant without parameters, with it squeeze-and-excitation, over the whole map
    or parts of it; those whose pooling has parameters of its own are not here. The layer is put together here, because
    timm 1.0.31's cannot be built (it hands the names of its keywords on as positions).

    Args:
        channels: Channels of the feature map.
        extent: 0 for the whole map, or the even stride of windows of ``2 * extent - 1`` positions.
        use_mlp: True if an MLP stands between the pool and the gate.
        rd_ratio: Hidden channels for each channel.
        rd_channels: Hidden channels, instead of ``rd_ratio``.
        rd_divisor: Number to a multiple of which the hidden channels are rounded.
        add_maxpool: True to average the mean with the maximum.
        act_layer: Activation of the hidden channels.
        gate_layer: Name or class of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Source: Hu et al., "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks", NeurIPS 2018,
    arXiv:1810.12348.
    """

    def __init__(
        self,
        channels: int,
        *,
        extent: int = 0,
        use_mlp: bool = True,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        add_maxpool: bool = False,
        act_layer: type[nn.Module] = nn.ReLU,
        gate_layer: str | type[nn.Module] = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(extent, bool) or not isinstance(extent, int) or extent < 0 or extent % 2:
            raise UserError(f"GatherExcite: extent must be 0 (the whole map) or an even number, got {extent!r}.")
        super().__init__(channels, extent=extent, use_mlp=False, add_maxpool=add_maxpool, gate_layer=gate_layer)
        self.gate_kind = "full" if extent else "channel"
        if use_mlp:
            if rd_channels is None:
                rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
            check_count("GatherExcite", "rd_channels", rd_channels)
            self.mlp = ConvMlp(channels, rd_channels, act_layer=act_layer, device=device, dtype=dtype)

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        if isinstance(self.mlp, nn.Identity):
            raise UserError(
                "open gates need a bias before the gate, and GatherExcite without its MLP has no parameters."
            )
        open_gate(self.mlp.fc2, gate=self.gate)


class GlobalContext(_FromTimm, timm_layers.GlobalContext):
    """``w = σ(W2 ReLU(LN(W1 Σ_p softmax(k x)_p x_p)))``, a gate of what the paper's block adds.

    Source: Cao et al., arXiv:1904.11492.
    """

    _refused: ClassVar[tuple[str, ...]] = ("fuse_add", "fuse_scale", "init_last_zero")

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.mlp_scale.fc2, gate=self.gate)


class AddedGlobalContext(GlobalContext):
    """``y = x + W2 ReLU(LN(W1 Σ_p softmax(k x)_p x_p))``, with twice the paper's hidden channels.

    The paper's 1/16 of the channels is ``rd_ratio=1 / 16``. Source: Cao et al., arXiv:1904.11492.
    """

    gate_kind = None
    open_gates: Any = None  # there is none: it adds
    _refused: ClassVar[tuple[str, ...]] = ("fuse_add", "fuse_scale", "init_last_zero", "gate_layer")

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(channels, fuse_add=True, fuse_scale=False, **settings)


class CoordinateAttention(_FromTimm, CoordAttn):
    """``y = a_h ⊙ a_w ⊙ x``, from the means of rows and of columns.

    timm has no biases, and hidden channels like those of squeeze-and-excitation. The authors' released code has biases
    (``bias=True``) and ``reduction=32``: a hidden channel for every 32, rounded down, at least 8. Source: Hou et al.,
    arXiv:2103.02907.
    """

    gate_kind = "full"

    def __init__(self, channels: int, *, reduction: int | None = None, **settings: Any) -> None:
        if reduction is not None:
            check_count(type(self).__name__, "reduction", reduction)
            check_channels(type(self).__name__, channels)
            settings = {"rd_channels": max(8, channels // reduction), **settings}
        super().__init__(channels, **{"norm_layer": BatchNorm2d, **settings})

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.conv_h, gate=self.gate)
        open_gate(self.conv_w, gate=self.gate)


class SimpleCoordinateAttention(_FromTimm, SimpleCoordAttn):
    """As coordinate attention, without norm, the two sides added before the gate. Source: timm."""

    gate_kind = "full"

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.fc_h, self.fc_w, gate=self.gate)


class EfficientLocalAttention(_FromTimm, EfficientLocalAttn):
    """``a = σ(SiLU(GN(conv1d(mean x))))`` for rows and for columns, ``y = a_h ⊙ a_w ⊙ x``; the convolutions depthwise.

    timm puts SiLU before the gate, which keeps every factor of the weights above 0.43, and norms all channels as one
    group. The paper has neither: ``act_layer=nn.Identity, groups=16`` is its ELA-B, and with ``kernel_size=5,
    groups=32`` its ELA-T. Source: Xu and Wan, arXiv:2403.01123.
    """

    gate_kind = "full"

    def __init__(self, channels: int, *, groups: int = 1, **settings: Any) -> None:
        name = type(self).__name__
        check_channels(name, channels)
        check_count(name, "groups", groups)
        if channels % groups:
            raise UserError(f"{name}: groups must divide the channels, got {groups} groups for {channels} channels.")
        # timm's own refuses one channel on a map with a side of one pixel.
        super().__init__(channels, **{"norm_layer": partial(GroupNorm, groups), **settings})

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        for norm in (self.norm_h, self.norm_w):
            open_gate(norm, gate=nn.Sequential(self.act, self.gate))


class StripAttention(_FromTimm, StripAttn):
    """``y = σ(a_h + a_w) ⊙ x``, from depthwise convolutions of the means of rows and columns. Source: timm."""

    gate_kind = "full"

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.conv_h, self.conv_w, gate=self.gate)
