"""The tie between a pooling of ``x`` and the scaling of ``x`` that follows, so that one pass writes the gradient of x.

A pooling reads ``x`` for its statistics, and a scaling multiplies ``x`` by what was made of them. Separately, each
would write a gradient the size of ``x``, and autograd would add them up. Here the scaling's backward pass computes the
small gradients only (of ``w``, ``s`` and the shortcut) and leaves a note for the pooling's, which comes later and
writes the gradient of ``x`` in one go. The note travels as the gradients of outputs of the pooling that hold no data
and that the scaling takes: a carry goes to one scaling of the same ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csham.ops.operators.operator import like

__all__ = ["CARRY", "SCALED", "Carry", "carry", "carry_of", "scaled"]


class Carry(NamedTuple):
    """Tie from one pooling to one scaling of the same map; no data.

    Attributes:
        z: Brings the gradient of ``w s x``.
        w: Brings the channel weights of the scaling.
        s: Brings its spatial weights.
        ties: Brings how many channels share each position's maximum.
    """

    z: Tensor
    w: Tensor
    s: Tensor
    ties: Tensor


# Last results of a pooling, last arguments of a scaling; and what comes back, as a pooling's backward pass takes it.
CARRY = "Tensor carry_z, Tensor carry_w, Tensor carry_s, Tensor carry_ties"
SCALED = "Tensor? grad_z, Tensor x, Tensor? affine, Tensor? w, Tensor? s"


def carry(x: Tensor) -> Carry:
    """Return a tie for ``x``: one value each, which nobody reads, as an array."""
    B, C, H, W = x.shape
    return Carry(
        _expanded(x, (B, C, H, W), x.dtype),
        _expanded(x, (B, C), torch.float32),
        _expanded(x, (B, 1, H, W), torch.float32),
        _expanded(x, (B, 1, H, W), torch.float32),
    )


def carry_of(results: Any) -> Carry:
    """Return the carry among the results of a pooling."""
    # By name: the older torch.compile does not cut a named tuple.
    return Carry(results.carry_z, results.carry_w, results.carry_s, results.carry_ties)


def scaled(saved: Any, grads: Any) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the first arguments of a pooling's backward pass, from its map and the gradients of its results."""
    return like(grads.carry_z, saved.x), saved.x, saved.affine, grads.carry_w, grads.carry_s


def _expanded(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return x.new_empty((), dtype=dtype).expand(shape)
