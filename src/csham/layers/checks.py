"""Settings and input of attention layers: what is refused, and what is made of the rest.

Without torch until an activation is built: layers of Keras check theirs here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "check_act",
    "check_channels",
    "check_count",
    "check_dropout",
    "check_input",
    "check_odd",
    "create_activation",
    "largest_divisor",
]


def check_channels(layer: str, channels: int) -> None:
    """Refuse a number of channels that is not a whole number of at least one."""
    check_count(layer, "channels", channels)


def check_count(layer: str, setting: str, value: int) -> None:
    """Refuse a setting that is not a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{layer}: {setting} must be a whole number of at least 1, got {value!r}.")


def check_odd(layer: str, setting: str, value: int) -> None:
    """Refuse a kernel size that is not an odd whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise UserError(f"{layer}: {setting} must be an odd whole number, got {value!r}.")


def check_dropout(layer: str, dropout: float) -> None:
    """Refuse a probability of dropout that is below 0 or leaves nothing."""
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"{layer}: dropout must be at least 0 and below 1, got {dropout!r}.")


def check_act(act: str | None) -> None:
    """Refuse an activation that is neither ``"relu"`` nor None."""
    if act not in (None, "relu"):
        raise UserError(f"act must be 'relu' or None (linear, the authors' functional version), got {act!r}.")


def check_input(layer: str, x: Tensor, channels: int) -> None:
    """Refuse an input that is not a (B, channels, H, W) map of floating-point numbers."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise UserError(
            f"{layer}: expected a feature map (B, C, H, W) with C = {channels} channels, got {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise UserError(f"{layer}: expected floating-point numbers, got {x.dtype}. Convert with x.float().")


def create_activation(act: str | None) -> nn.Module:
    """Build the activation ``"relu"`` (the authors' layer class) or None (their functional version: linear)."""
    from torch import nn  # noqa: PLC0415  what is built needs torch, what is checked does not

    check_act(act)
    return nn.Identity() if act is None else nn.ReLU()


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of ``number`` that is not above ``at_most``; both at least 1."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
