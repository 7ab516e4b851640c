"""What every attention layer asks of its settings and of its input."""

from __future__ import annotations

from torch import Tensor

from csham.errors import UserError

__all__ = ["check_channels", "check_input"]


def check_channels(layer: str, channels: int) -> None:
    """Refuse a number of channels that is not a whole number of at least one."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"{layer}: channels must be a whole number of at least 1, got {channels!r}.")


def check_input(layer: str, x: Tensor, channels: int) -> None:
    """Refuse an input that is not a (B, channels, H, W) map of floating-point numbers."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise UserError(
            f"{layer}: expected a feature map (B, C, H, W) with C = {channels} channels, got {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise UserError(f"{layer}: expected floating-point numbers, got {x.dtype}. Convert with x.float().")
