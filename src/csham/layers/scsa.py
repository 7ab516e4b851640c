"""SCSA: a gate of rows and columns at four kernel sizes, which guides self-attention among the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham import ops
from csham.errors import UserError
from csham.layers.attention import Gate
from csham.layers.checks import check_count, check_odd
from csham.layers.norm import GroupNorm
from csham.layers.opening import open_gate

__all__ = ["SCSA"]


class SCSA(Gate):
    """Spatial and channel synergistic attention.

    The means of all rows and of all columns, (B, C, H) and (B, C, W), go through depthwise convolutions, each quarter
    of the channels through one of its own length, group norm and a sigmoid; their product ``s`` scales the map. What
    comes out is averaged over windows and normalised, scaled to ``q, k, v`` by three values a channel, and becomes
    ``w = σ(mean_n(softmax(q kᵀ / √d) v))``, attention of the ``d`` channels of a head to each other.
    ``y = w ⊙ s ⊙ x``. 16 parameters a channel, whose state_dict keys are those of the authors' released code.

    Args:
        channels: Channels of the feature map; a multiple of 4.
        heads: Heads of the channels' self-attention; a divisor of ``channels``. 1 in the paper's second version and in
            the authors' configurations.
        window: Side of the windows; where the map is smaller (ours: the authors' code fails there), its own side.
        kernel_sizes: Lengths of the four convolutions; odd.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: Channels that are no multiple of 4, another setting or an input that cannot work; a ``ValueError``.

    Source: Si et al., "SCSA: Exploring the Synergistic Effects Between Spatial and Channel Attention",
    arXiv:2407.05128, and the authors' released code.
    """

    local_dwc: nn.Module
    global_dwc_s: nn.Module
    global_dwc_m: nn.Module
    global_dwc_l: nn.Module

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        *,
        window: int = 7,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels)
        _check_settings(channels, heads, window, kernel_sizes)
        self.heads, self.window = heads, window
        quarter = channels // 4
        names = ("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l")
        for name, size in zip(names, kernel_sizes, strict=True):
            conv = nn.Conv1d(quarter, quarter, size, padding=size // 2, groups=quarter, device=device, dtype=dtype)
            self.add_module(name, conv)
        self.norm_h = GroupNorm(4, channels, device=device, dtype=dtype)
        self.norm_w = GroupNorm(4, channels, device=device, dtype=dtype)
        self.norm = GroupNorm(1, channels, device=device, dtype=dtype)
        self.q = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=device, dtype=dtype)
        self.k = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=device, dtype=dtype)
        self.v = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=device, dtype=dtype)

    def open_gates(self) -> None:
        """Let the weights start near 1."""
        # Attention averages what v puts out, and its bias with it.
        for layer in (self.norm_h, self.norm_w, self.v):
            open_gate(layer)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``, (B, C, H, W), in (0, 1)."""
        self._check(x)
        spatial = self._spatial_weights(x)
        return spatial * self._channel_weights(ops.scale(x, spatial))[:, :, None, None]

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{super().extra_repr()}, heads={self.heads}, window={self.window}"

    def _spatial_weights(self, x: Tensor) -> Tensor:
        rows = self.norm_h(self._along(x.mean(3))).sigmoid()  # (B, C, H)
        columns = self.norm_w(self._along(x.mean(2))).sigmoid()  # (B, C, W)
        return rows[:, :, :, None] * columns[:, :, None]

    def _along(self, means: Tensor) -> Tensor:
        convs = (self.local_dwc, self.global_dwc_s, self.global_dwc_m, self.global_dwc_l)
        return torch.cat([conv(part) for conv, part in zip(convs, means.chunk(4, 1), strict=True)], 1)

    def _channel_weights(self, x: Tensor) -> Tensor:
        pooled = self.norm(F.avg_pool2d(x, (min(self.window, x.shape[2]), min(self.window, x.shape[3]))))
        heads = (self.heads, self.channels // self.heads)
        q, k, v = (conv(pooled).flatten(2).unflatten(1, heads) for conv in (self.q, self.k, self.v))
        # The channels of a head attend to each other, so it is they that are scaled for, not the positions.
        attended = F.scaled_dot_product_attention(q, k, v, scale=heads[1] ** -0.5)  # (B, heads, d, N)
        return attended.mean(3).flatten(1).sigmoid()


def _check_settings(channels: int, heads: int, window: int, kernel_sizes: Sequence[int]) -> None:
    if channels % 4:
        raise UserError(
            f"SCSA: needs channels that are a multiple of 4, a quarter for each kernel size, got {channels}. "
            "Use another attention here."
        )
    check_count("SCSA", "heads", heads)
    check_count("SCSA", "window", window)
    if channels % heads:
        raise UserError(f"SCSA: heads must divide the {channels} channels, got {heads}.")
    if len(kernel_sizes) != 4:
        raise UserError(f"SCSA: kernel_sizes must be four, one for each quarter of the channels, got {kernel_sizes!r}.")
    for size in kernel_sizes:
        check_odd("SCSA", "kernel_sizes", size)
