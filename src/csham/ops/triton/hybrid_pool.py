"""CSHAM's channel weights, and then the statistics over the channels.

forward    mean_hw and max_hw of x (channel_pool), w (channel_gate), mean_c, max_c and neighbour term of w x, or of x
           (position_pool)                                                  reads x twice
backward   as pool_backward says; between its passes the gradient of w, which the first completes, goes back through the
           gate to the statistics over the positions                        reads x twice and dz once, writes dx once
saved      x, w, mean_hw, max_hw, max_c
"""

from __future__ import annotations

import torch
from torch import Tensor

from csham.ops.operators.carry import carry
from csham.ops.triton.channel_gate import Gate, gate, gate_backward
from csham.ops.triton.channel_pool import channel_statistics
from csham.ops.triton.maps import like, map_of, small
from csham.ops.triton.pool_backward import PoolBackward
from csham.ops.triton.position_pool import position_statistics
from csham.ops.triton.sums import added

__all__ = ["hybrid_pool", "hybrid_pool_backward"]


def hybrid_pool(
    x: Tensor,
    affine: Tensor | None,
    avg_weight: Tensor,
    avg_bias: Tensor,
    max_weight: Tensor,
    max_bias: Tensor,
    fuse_weight: Tensor,
    fuse_bias: Tensor,
    relu: bool,
    positions: bool,
    weighted: bool,
    neighbor_weight: Tensor | None,
) -> tuple[Tensor, ...]:
    """Implement the operator ``hybrid_pool``."""
    map_ = map_of(x)
    given = Gate((avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias), relu)
    channel = gate(channel_statistics(x, affine, map_, True), map_, given)
    if positions:
        position_w = channel[0] if weighted else None
        position = position_statistics(x, affine, map_, position_w, small(neighbor_weight, 9 * map_.C))
    else:
        position = tuple(x.new_empty(0, dtype=torch.float32) for _ in range(3))
    return *channel, *position, *carry(x)


def hybrid_pool_backward(
    grad_z: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    avg_weight: Tensor,
    avg_bias: Tensor,
    max_weight: Tensor,
    max_bias: Tensor,
    fuse_weight: Tensor,
    fuse_bias: Tensor,
    relu: bool,
    weighted: bool,
    channel_w: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    grad_channel_w: Tensor | None,
    grad_mean: Tensor | None,
    grad_max: Tensor | None,
    max: Tensor | None,
    ties: Tensor | None,
    grad_neighbors: Tensor | None,
    neighbor_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement the operator ``hybrid_pool_backward``."""
    map_ = map_of(x)
    channels = map_.B * map_.C
    given = Gate((avg_weight, avg_bias, max_weight, max_bias, fuse_weight, fuse_bias), relu)
    backward = PoolBackward(like(grad_z, x), x, affine, small(w, channels), small(s, map_.B * map_.positions), map_)
    if max is not None:
        position_w = channel_w if weighted else None
        backward.set_positions(position_w, grad_mean, grad_max, max, ties, grad_neighbors, neighbor_weight)
    backward.channel_max = small(channel_max, channels)
    parts, _ = backward.statistics_gradient()
    backward.grad_channel_mean, backward.grad_channel_max, filter_parts = gate_backward(
        parts,
        backward.outputs(),
        map_,
        given,
        (channel_mean, channel_max),
        small(grad_channel_w, channels),
        backward.position_w,
        backward.neighbor_weight,
    )
    grad_filters, neighbor_filters = added(filter_parts, backward.filter_parts)
    assert grad_filters is not None
    return backward.input_gradient(), grad_filters, backward.grad_neighbor_weight(neighbor_filters)
