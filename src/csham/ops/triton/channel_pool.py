"""Statistics over the positions.

forward    mean[b, c] = sum_hw(x) / (H W);  max[b, c] = max_hw(x)     reads x once
backward   dx = w s dz + dmean / (H W) + dmax / ties * [x == max]     reads x and dz once, writes dx once; with a
           maximum x twice, because the ties are counted first; see pool_backward
saved      x, max; sums accumulate in float32, in an order that depends on the shape alone
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.operators.carry import carry
from csham.ops.triton.maps import OPTIONS, Blocks, Map, like, map_of, small
from csham.ops.triton.normed import load_affine, normed
from csham.ops.triton.pool_backward import PoolBackward
from csham.ops.triton.reductions import collect, maximum, maximum_over

__all__ = ["channel_pool", "channel_pool_backward", "channel_statistics", "collect_channel_statistics"]


def channel_pool(x: Tensor, affine: Tensor | None, maximum: bool) -> tuple[Tensor, ...]:
    """Implement the operator ``channel_pool``."""
    map_ = map_of(x)
    mean, maxima = channel_statistics(x, affine, map_, maximum)
    if mean.shape[0] == 1:
        mean, maxima = mean[0], maxima[0] if maximum else maxima
    else:
        parts = (mean, maxima)
        mean, maxima = x.new_empty(parts[0].shape[1:], dtype=torch.float32), torch.empty_like(parts[1][0])
        _combine(map_, parts, mean, maxima)
    return mean, maxima if maximum else x.new_empty(0, dtype=torch.float32), *carry(x)


def channel_pool_backward(
    grad_z: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    grad_mean: Tensor,
    grad_max: Tensor | None,
    max: Tensor | None,
) -> Tensor:
    """Implement the operator ``channel_pool_backward``."""
    map_ = map_of(x)
    channels, positions = map_.B * map_.C, map_.B * map_.positions
    backward = PoolBackward(like(grad_z, x), x, affine, small(w, channels), small(s, positions), map_)
    backward.channel_max = small(max, channels)
    backward.grad_channel_mean, backward.grad_channel_max = small(grad_mean, channels), small(grad_max, channels)
    backward.gather()
    return backward.input_gradient()


def channel_statistics(x: Tensor, affine: Tensor | None, map_: Map, maximum: bool) -> tuple[Tensor, Tensor]:
    """Return what chunks of the positions contribute to mean and maximum, (chunks, B, C)."""
    blocks = Blocks.of(map_, 4096, 128 if map_.channels_last else 1024, loop="hw")
    mean = x.new_empty((blocks.chunks, map_.B, map_.C), dtype=torch.float32)
    maxima = torch.empty_like(mean) if maximum else mean
    grid = (triton.cdiv(map_.C, blocks.block_c) * blocks.chunks * map_.B,)
    channel_statistics_kernel[grid](
        x,
        small(affine, 2 * map_.C),
        mean,
        maxima if maximum else None,
        map_.B,
        map_.C,
        map_.positions,
        *map_.strides,
        blocks.chunk,
        blocks.chunks,
        BLOCK_C=blocks.block_c,
        BLOCK_HW=blocks.block_hw,
        **OPTIONS,
    )
    return mean, maxima


def _combine(map_: Map, parts: tuple[Tensor, Tensor], mean: Tensor, maxima: Tensor) -> None:
    rows = map_.B * map_.C
    combine_kernel[(triton.cdiv(rows, 256),)](
        *parts, mean, maxima, rows, parts[0].shape[0], MAXIMUM=parts[1] is not parts[0], BLOCK=256, **OPTIONS
    )


@triton.jit
def channel_statistics_kernel(
    x_ptr, affine_ptr, mean_ptr, max_ptr, B, C, P, stride_c, stride_hw, chunk, chunks,
    BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr,
):  # fmt: skip
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    pid_c, pid_chunk, b = pid % blocks_c, pid // blocks_c % chunks, (pid // blocks_c // chunks).to(tl.int64)
    offs_c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    if affine_ptr is not None:
        scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
    x_ptr += b * C * P
    total = tl.zeros([BLOCK_C, BLOCK_HW], tl.float32)
    maxima = tl.full([BLOCK_C, BLOCK_HW], float("-inf"), tl.float32)
    begin = pid_chunk * chunk
    end = tl.minimum(begin + chunk, P)
    for start in range(begin, end, BLOCK_HW):
        offs_hw = start + tl.arange(0, BLOCK_HW)
        mask = mask_c[:, None] & (offs_hw < end)[None, :]
        x = tl.load(x_ptr + offs_c[:, None] * stride_c + offs_hw[None, :] * stride_hw, mask=mask, other=0.0)
        x = x.to(tl.float32)
        if affine_ptr is not None:
            x = tl.where(mask, normed(x, scale, shift, x_ptr.dtype.element_ty), 0.0)
        total += x
        if max_ptr is not None:
            maxima = maximum(maxima, tl.where(mask, x, float("-inf")))
    out = (pid_chunk * B + b) * C + offs_c
    tl.store(mean_ptr + out, tl.sum(total, 1) / P, mask=mask_c)
    if max_ptr is not None:
        tl.store(max_ptr + out, maximum_over(maxima, 1), mask=mask_c)


@triton.jit
def collect_channel_statistics(mean_ptr, max_ptr, offs, mask, chunks, stride):
    """Bring the parts of :func:`channel_statistics` together."""
    mean = collect(mean_ptr, offs, mask, chunks, stride)
    maxima = tl.load(max_ptr + offs, mask=mask, other=0.0)
    for _ in range(1, chunks):
        max_ptr += stride
        maxima = maximum(maxima, tl.load(max_ptr + offs, mask=mask, other=0.0))
    return mean, maxima


@triton.jit
def combine_kernel(
    mean_parts_ptr, max_parts_ptr, mean_ptr, max_ptr, rows, chunks, MAXIMUM: tl.constexpr, BLOCK: tl.constexpr
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < rows
    if MAXIMUM:
        mean, maxima = collect_channel_statistics(mean_parts_ptr, max_parts_ptr, offs, mask, chunks, rows)
        tl.store(max_ptr + offs, maxima, mask=mask)
    else:
        mean = collect(mean_parts_ptr, offs, mask, chunks, rows)
    tl.store(mean_ptr + offs, mean, mask=mask)
