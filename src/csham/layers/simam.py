"""SimAM: attention without parameters, from how much each value stands out in its channel."""

from __future__ import annotations

import torch
from torch import Tensor

from csham.errors import UserError
from csham.layers.attention import Gate

__all__ = ["SimAM"]


class SimAM(Gate):
    """Scale each value by how far it lies from the mean of its channel.

    ``y = σ(1 / e) ⊙ x`` with the inverse of the minimal energy ``1 / e = d / (4 (v + λ)) + 1 / 2``,
    ``d = (x - mean_hw x)²`` and ``v = Σ_hw d / (H W - 1)``. No parameters.

    The paper's variance divides by ``H W``; the authors' code, followed here, by one less (on a single pixel, where
    that is none, ``d`` is 0 and any divisor gives the same).

    Args:
        channels: Channels of the feature map.
        e_lambda: λ, which keeps the weights finite in a constant channel; above 0.
        device: Without effect, as there are no parameters; taken so that every attention is built alike.
        dtype: Likewise.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept. Half precision is computed in
        float32, because the squares of its larger values overflow.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Source: Yang et al., "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
    ICML 2021 (PMLR 139), and the authors' released code.
    """

    def __init__(
        self,
        channels: int,
        e_lambda: float = 1e-4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        if not e_lambda > 0:
            raise UserError(f"SimAM: e_lambda must be above 0, got {e_lambda!r}.")
        self.e_lambda = e_lambda

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (0.5, 1)."""
        self._check(x)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = (x - x.mean((2, 3), keepdim=True)).square()
        variance = square.sum((2, 3), keepdim=True) / max(x.shape[2] * x.shape[3] - 1, 1)
        return (square / (4 * (variance + self.e_lambda)) + 0.5).sigmoid()

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{super().extra_repr()}, e_lambda={self.e_lambda}"
