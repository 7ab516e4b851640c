"""Norms that are defined for a single value too, as a map of one pixel in a batch of one gives them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchNorm2d", "GroupNorm"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises a single value per channel by the running statistics, in training too.

    One value has no variance to be normalised by, and torch refuses it; everything else is torch's.
    """

    # So that kernels may do what it does.
    is_plain_batch_norm = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (B, C, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class GroupNorm(nn.GroupNorm):
    """Group norm that maps a group of one value to its bias, where torch refuses a batch of one such group."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (B, C, ...)."""
        # The function under F.group_norm, which computes a single value without complaint.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
