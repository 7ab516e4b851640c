"""Max-average fusion channel attention: which channels matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from csham import ops
from csham.layers.attention import ChannelStep
from csham.layers.checks import check_channels, check_input, check_odd, create_activation
from csham.layers.opaque import Opaque
from csham.layers.opening import open_gate
from csham.ops.calls import filter_of

__all__ = ["ChannelAttention", "in_todays_names"]

Value = TypeVar("Value")

# What was ``join`` was called so; timm takes a module's ``fuse`` for the method that folds it.
_FORMER = "fuse"


class ChannelAttention(Opaque, ChannelStep, nn.Module):
    """Scale each channel by a weight computed from its average, its maximum and those of its neighbours.

    ``y = w ⊙ x`` with ``w`` of :func:`csham.ops.channel_weights`. ``4 * kernel_size + 3`` parameters, whatever the
    number of channels. With ReLU the filters and biases start positive (ours: the authors leave that to Keras): one
    filter serves all channels, and where its sign makes every input of a ReLU negative, it has no gradient and may
    never train. With torch's initialisation that befell about a third of them.

    Args:
        channels: Channels of the feature map.
        kernel_size: Length of the filters along the channels; odd.
        act: ``"relu"`` as in the authors' layer class (weights in [0.5, 1)) or None as in their functional version.
        open_gates: True to start the weights near 1 (ours), where the authors' start near 1/2.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        act: str | None = "relu",
        *,
        open_gates: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels("ChannelAttention", channels)
        check_odd("ChannelAttention", "kernel_size", kernel_size)
        self.channels = channels
        padding = kernel_size // 2
        self.avg = nn.Conv1d(1, 1, kernel_size, padding=padding, device=device, dtype=dtype)
        self.max = nn.Conv1d(1, 1, kernel_size, padding=padding, device=device, dtype=dtype)
        self.join = nn.Conv1d(2, 1, kernel_size, padding=padding, device=device, dtype=dtype)
        self.act = create_activation(act)
        self.reset_parameters()
        if open_gates:
            self.open_gates()

    def reset_parameters(self) -> None:
        """Draw new filters as torch does; positive ones where ReLU follows."""
        for conv in (self.avg, self.max, self.join):
            conv.reset_parameters()
            if isinstance(self.act, nn.ReLU):
                for parameter in conv.parameters():
                    parameter.data.abs_()

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        open_gate(self.join)

    def operands(self) -> ops.ChannelParameters:
        """Return what the functions of :mod:`csham.ops` take."""
        return ops.ChannelParameters(*filter_of(self.avg), *filter_of(self.max), *filter_of(self.join), self.act)

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C), without applying them."""
        check_input("ChannelAttention", x, self.channels)
        return ops.channel_weights(x, *self.operands())

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W)."""
        return self.attend(x)

    def extra_repr(self) -> str:
        """Name the setting that the children do not show."""
        return f"channels={self.channels}"

    def _scale(self, x: Tensor, shortcut: Tensor | None, source: ops.Source | None) -> tuple[Tensor, Tensor]:
        check_input("ChannelAttention", x, self.channels)
        return ops.channel_attention(x, self.operands(), shortcut, source)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for part in ("weight", "bias"):
            former, today = f"{prefix}{_FORMER}.{part}", f"{prefix}join.{part}"
            if former in state_dict and today not in state_dict:
                state_dict[today] = state_dict.pop(former)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = {"join" if name == _FORMER else name: module for name, module in state["_modules"].items()}
        super().__setstate__({**state, "_modules": modules})


def in_todays_names(network: nn.Module, weights: Mapping[str, Value]) -> dict[str, Value]:
    """Name the weights of a file that may be older as a network names them.

    ``load_state_dict`` needs none of it; it is for code that compares names before.

    Args:
        network: The network.
        weights: Weights, or what is known of them, by their names in the file.
    """
    names = {f"{name}." if name else "" for name, part in network.named_modules() if isinstance(part, ChannelAttention)}
    today = {f"{prefix}{_FORMER}.{part}": f"{prefix}join.{part}" for prefix in names for part in ("weight", "bias")}
    return {name if today.get(name, name) in weights else today[name]: value for name, value in weights.items()}
