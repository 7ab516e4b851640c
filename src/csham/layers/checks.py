"""Checks of the settings and the input of every attention layer."""

from __future__ import annotations

from torch import Tensor

from csham.errors import UserError

__all__ = ["check_channels", "check_count", "check_input", "check_odd"]


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


def check_input(layer: str, x: Tensor, channels: int) -> None:
    """Refuse an input that is not a (B, channels, H, W) map of floating-point numbers."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise UserError(
            f"{layer}: expected a feature map (B, C, H, W) with C = {channels} channels, got {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise UserError(f"{layer}: expected floating-point numbers, got {x.dtype}. Convert with x.float().")
