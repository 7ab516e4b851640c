"""Norms for attention: defined for a single value too, and with running statistics that a short training can use."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham import ops

__all__ = ["BatchNorm2d", "GroupNorm"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics are unbiased from the first batch on.

    torch's start from mean 0 and variance 1 and forget these by the momentum ``m`` alone: with the 0.01 of CSHAM's
    authors three quarters of them are left after 30 batches. Here batch ``n`` moves the statistics by
    ``m / (1 - (1 - m)^n)`` of the way to its own: the first replaces what was there, the weights of all batches so far
    sum to 1, and after some ``3 / m`` batches the rate is ``m``. It is what Adam's bias correction does to its
    averages (Kingma and Ba, arXiv:1412.6980, section 3), in the same buffers as torch's.

    A single value per channel, which has no variance and which torch refuses, is normalised by the running statistics,
    in training too, and moves them as little as an empty batch does. A state_dict with statistics but without
    ``num_batches_tracked``, such as another framework's, is taken to be past its beginning. Everything else is torch's.
    """

    @property
    def is_plain_batch_norm(self) -> bool:
        """True if kernels may do what it does; a subclass may do something else."""
        return type(self) is BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (B, C, H, W)."""
        self._check_input_dim(x)
        if self.running_mean is not None and (not self.training or x.numel() <= x.shape[1]):
            statistics = ops.running_statistics(self)
            return F.batch_norm(x, *statistics, self.weight, self.bias, False, 0.0, self.eps)
        if self.running_mean is None or self.running_var is None or not self.track_running_stats:
            return super().forward(x)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # A momentum of 1 leaves the batch's own statistics in the buffers.
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        ops.follow(self, mean, var)
        return y

    def averaging_rate(self) -> Tensor:
        """Return how far the batch that was counted last moves the running statistics, from 1 down to ``momentum``."""
        count, momentum = self.num_batches_tracked, self.momentum
        assert count is not None
        if momentum is None:
            return 1 / count
        if not 0 < momentum < 1:  # 0 stands still, 1 forgets all
            return torch.full_like(count, momentum, dtype=torch.float32)
        return -momentum / torch.expm1(count * math.log1p(-momentum))

    def settle(self) -> None:
        """Take the running statistics, which came from elsewhere, to be past their beginning."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.fill_(_SETTLED)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "running_mean" in state_dict:
            state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(_SETTLED))
        super()._load_from_state_dict(state_dict, prefix, *args)


# Batches after which no momentum in use leaves anything of the beginning.
_SETTLED = 1_000_000


class GroupNorm(nn.GroupNorm):
    """Group norm that maps a group of one value to its bias, where torch refuses a batch of one such group."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (B, C, ...)."""
        # The function under F.group_norm, which computes a single value without complaint.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
