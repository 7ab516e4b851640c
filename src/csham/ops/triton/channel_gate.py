"""CSHAM's channel weights from the statistics of the channels: three convolutions along them, one image a program.

forward    a' = act(conv(mean));  m' = act(conv(max));  w = sigmoid(act(conv([a'; m'])))
backward   dlogit = dw w (1 - w);  each convolution backwards: filters by correlation, inputs by the turned filter
saved      mean, max; a', m' and w are cheaper to compute again than to keep

All of it is (B, C), so what counts is the number of launches: each kernel also adds up the parts that the pass before
it left, and the gradients of the filters come one row an image.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.channel_pool import collect_channel_statistics
from csham.ops.triton.maps import OPTIONS, Map, small
from csham.ops.triton.pool_backward import collect_statistics_gradient

__all__ = ["Gate", "gate", "gate_backward"]


class Gate:
    """Weights and biases of the convolutions avg, max and fuse, and whether ReLU follows each."""

    def __init__(self, filters: tuple[Tensor, ...], relu: bool):
        k = filters[0].numel()
        self.filters = tuple(small(f, n) for f, n in zip(filters, (k, 1, k, 1, 2 * k, 1), strict=True))
        self.kernel_size, self.relu = k, relu

    @property
    def parameters(self) -> int:
        """Number of all weights and biases."""
        return 4 * self.kernel_size + 3

    def arguments(self, map_: Map) -> dict[str, Any]:
        """Return the arguments that the kernels need."""
        block = triton.next_power_of_2(map_.C)
        warps = 4 if block <= 1024 else 8
        return {"K": self.kernel_size, "RELU": self.relu, "BLOCK_C": block, **OPTIONS, "num_warps": warps}


def gate(parts: tuple[Tensor, Tensor], map_: Map, given: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, mean and maximum, (B, C), from the parts of mean and maximum, (chunks, B, C)."""
    w, mean, maxima = (torch.empty_like(parts[0][0]) for _ in range(3))
    gate_kernel[(map_.B,)](
        *parts, *given.filters, w, mean, maxima, map_.B, map_.C, parts[0].shape[0], **given.arguments(map_)
    )
    return w, mean, maxima


def gate_backward(
    parts: Tensor,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None],
    map_: Map,
    given: Gate,
    statistics: tuple[Tensor, Tensor],
    grad_w: Tensor | None,
    position_w: Tensor | None,
    neighbor_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of mean and maximum, (B, C), and of the filters, flattened, for each image.

    Args:
        parts: Results of the pass over x, (chunks, B, slots, C).
        outputs: Room for what it says of others, see ``PoolBackward.outputs``.
        map_: The map.
        given: The filters.
        statistics: Mean and maximum, (B, C).
        grad_w: Gradient of the weights, (B, C), beside what the parts say.
        position_w: The weights, if the positions' statistics were taken with them.
        neighbor_weight: Filters of the neighbour term.
    """
    grad_mean, grad_max = (parts.new_empty((map_.B, map_.C)) for _ in range(2))
    grad_filters = grad_mean.new_empty((map_.B, given.parameters))
    gate_backward_kernel[(map_.B,)](
        parts,
        *outputs,
        position_w,
        neighbor_weight,
        *given.filters,
        *(small(one, map_.B * map_.C) for one in statistics),
        grad_w,
        grad_mean,
        grad_max,
        grad_filters,
        map_.B,
        map_.C,
        parts.shape[0],
        SLOTS=parts.shape[2],
        **given.arguments(map_),
    )
    return grad_mean, grad_max, grad_filters


@triton.jit
def _shifted(values, offs_c, C, SHIFT: tl.constexpr):
    """The value ``SHIFT`` channels further on, zero past the ends."""
    source = offs_c + SHIFT
    inside = (source >= 0) & (source < C)
    return tl.where(inside, tl.gather(values, tl.where(inside, source, 0), 0), 0.0)


@triton.jit
def _correlate(weight_ptr, values, offs_c, C, K: tl.constexpr):
    total = tl.zeros_like(values)
    for j in tl.static_range(K):
        total += tl.load(weight_ptr + j) * _shifted(values, offs_c, C, j - K // 2)
    return total


@triton.jit
def _correlate_backward(weight_ptr, values, grads, dweight_ptr, offs_c, C, K: tl.constexpr):
    """Store the gradient of the weight, and return that of the values; ``grads`` are zero past the channels."""
    total = tl.zeros_like(values)
    for j in tl.static_range(K):
        tl.store(dweight_ptr + j, tl.sum(grads * _shifted(values, offs_c, C, j - K // 2), 0))
        total += tl.load(weight_ptr + j) * _shifted(grads, offs_c, C, K // 2 - j)
    return total


@triton.jit
def _activate(values, RELU: tl.constexpr):
    return tl.where(values < 0, 0.0, values) if RELU else values  # NaN stays NaN


@triton.jit
def _active(values, grads, RELU: tl.constexpr):
    """Gradient before the activation, of which ``values`` are the outputs."""
    return tl.where(values <= 0, 0.0, grads) if RELU else grads


@triton.jit
def gate_kernel(
    mean_parts_ptr,
    max_parts_ptr,
    avg_weight_ptr,
    avg_bias_ptr,
    max_weight_ptr,
    max_bias_ptr,
    fuse_weight_ptr,
    fuse_bias_ptr,
    w_ptr,
    mean_ptr,
    max_ptr,
    B,
    C,
    chunks,
    K: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    offs = tl.program_id(0).to(tl.int64) * C + offs_c
    mean, maxima = collect_channel_statistics(mean_parts_ptr, max_parts_ptr, offs, mask_c, chunks, B * C)
    tl.store(mean_ptr + offs, mean, mask=mask_c)
    tl.store(max_ptr + offs, maxima, mask=mask_c)
    avg_row = _activate(_correlate(avg_weight_ptr, mean, offs_c, C, K) + tl.load(avg_bias_ptr), RELU)
    max_row = _activate(_correlate(max_weight_ptr, maxima, offs_c, C, K) + tl.load(max_bias_ptr), RELU)
    logits = _correlate(fuse_weight_ptr, avg_row, offs_c, C, K) + _correlate(fuse_weight_ptr + K, max_row, offs_c, C, K)
    logits = _activate(logits + tl.load(fuse_bias_ptr), RELU)
    tl.store(w_ptr + offs, 1 / (1 + tl.exp(-logits)), mask=mask_c)


@triton.jit
def gate_backward_kernel(
    parts_ptr,
    dw_ptr,
    ties_ptr,
    dneighbor_filters_ptr,
    position_w_ptr,
    neighbor_filters_ptr,
    avg_weight_ptr,
    avg_bias_ptr,
    max_weight_ptr,
    max_bias_ptr,
    fuse_weight_ptr,
    fuse_bias_ptr,
    mean_ptr,
    max_ptr,
    dchannel_w_ptr,
    dmean_ptr,
    dmax_ptr,
    dfilters_ptr,
    B,
    C,
    chunks,
    SLOTS: tl.constexpr,
    K: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    b = tl.program_id(0).to(tl.int64)
    offs = b * C + offs_c
    dw = collect_statistics_gradient(
        parts_ptr, dw_ptr, ties_ptr, dneighbor_filters_ptr, position_w_ptr, neighbor_filters_ptr, b, offs_c, B, C,
        chunks, SLOTS,
    )  # fmt: skip
    # Without weights under the positions' statistics these say nothing of the channel weights.
    if position_w_ptr is None:
        dw = tl.zeros_like(dw)
    if dchannel_w_ptr is not None:
        dw += tl.load(dchannel_w_ptr + offs, mask=mask_c, other=0.0)

    mean = tl.load(mean_ptr + offs, mask=mask_c, other=0.0)
    maxima = tl.load(max_ptr + offs, mask=mask_c, other=0.0)
    avg_row = _activate(_correlate(avg_weight_ptr, mean, offs_c, C, K) + tl.load(avg_bias_ptr), RELU)
    max_row = _activate(_correlate(max_weight_ptr, maxima, offs_c, C, K) + tl.load(max_bias_ptr), RELU)
    logits = _correlate(fuse_weight_ptr, avg_row, offs_c, C, K) + _correlate(fuse_weight_ptr + K, max_row, offs_c, C, K)
    logits = _activate(logits + tl.load(fuse_bias_ptr), RELU)
    w = 1 / (1 + tl.exp(-logits))

    dlogits = tl.where(mask_c, _active(logits, dw * w * (1 - w), RELU), 0.0)
    out = dfilters_ptr + b * (4 * K + 3)
    fuse_out = out + 2 * K + 2
    tl.store(fuse_out + 2 * K, tl.sum(dlogits, 0))
    davg_row = _correlate_backward(fuse_weight_ptr, avg_row, dlogits, fuse_out, offs_c, C, K)
    dmax_row = _correlate_backward(fuse_weight_ptr + K, max_row, dlogits, fuse_out + K, offs_c, C, K)
    davg_row = tl.where(mask_c, _active(avg_row, davg_row, RELU), 0.0)
    dmax_row = tl.where(mask_c, _active(max_row, dmax_row, RELU), 0.0)
    tl.store(out + K, tl.sum(davg_row, 0))
    tl.store(out + 2 * K + 1, tl.sum(dmax_row, 0))
    dmean = _correlate_backward(avg_weight_ptr, mean, davg_row, out, offs_c, C, K)
    dmax = _correlate_backward(max_weight_ptr, maxima, dmax_row, out + K + 1, offs_c, C, K)
    tl.store(dmean_ptr + offs, dmean, mask=mask_c)
    tl.store(dmax_ptr + offs, dmax, mask=mask_c)
