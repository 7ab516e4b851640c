"""The two forms in which the authors released their layers: with ReLU after each convolution, and without."""

from __future__ import annotations

from torch import nn

from csham.errors import UserError

__all__ = ["create_activation"]


def create_activation(act: str | None) -> nn.Module:
    """Build the activation ``"relu"`` (the authors' layer class) or None (their functional version: linear)."""
    if act is None:
        return nn.Identity()
    if act == "relu":
        return nn.ReLU()
    raise UserError(f"act must be 'relu' or None (linear, the authors' functional version), got {act!r}.")
