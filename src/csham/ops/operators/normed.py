"""A map that is given as a batch norm's input, and never written: ``x = scale ⊙ u + shift``, where it is read.

Behind a norm, an attention reads the map that the norm would have to write, and keeps it for the backward pass, though
the norm keeps ``u`` already. Operators therefore take, for ``x``, ``u`` with ``affine``, (2, C) float32: scale and
shift of the channels. The values are rounded to the type of ``u`` as the norm would round them. The gradient that an
operator returns for ``x`` is that of the norm's output, and goes there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Source", "source_of"]


class Source(NamedTuple):
    """A map as operators read it.

    Attributes:
        x: The map, (B, C, H, W), or a norm's input, whose gradient goes to the norm's output.
        affine: The norm's scale and shift of the channels, (2, C), float32; None for the map itself.
    """

    x: Tensor
    affine: Tensor | None


def source_of(norm: Any, u: Tensor, y: Tensor) -> Source:
    """Return what a batch norm made its output of, for operators to read instead of that.

    In compiled code nothing then reads the output, and it is not computed: the compiler finds the statistics here to be
    those of the norm, and computes them once.

    Args:
        norm: A batch norm.
        u: What it was given, (B, C, H, W).
        y: What it returned, which is to have the gradient.
    """
    with torch.no_grad():
        if norm.training or norm.running_mean is None:
            # As torch decomposes its norm, to the letter.
            var, mean = torch.var_mean(u.detach().float(), (0, 2, 3), correction=0, keepdim=True)
            mean, var = mean.flatten(), var.flatten()
        else:
            mean, var = norm.running_mean.float(), norm.running_var.float()
        scale = torch.rsqrt(var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.float()
        shift = -mean * scale if norm.bias is None else norm.bias.float() - mean * scale
        affine = torch.stack((scale, shift))
    return Source(_Behind.apply(u.detach(), y), affine)


class _Behind(torch.autograd.Function):
    """The first map, with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, y: Tensor) -> Tensor:
        return u.view_as(u)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *grads
