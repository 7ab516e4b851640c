"""Spatial weights from the statistics over the channels: convolution, batch norms, activation, sum, sigmoid.

forward    position = conv([mean; max]);  s = sigmoid(act(norm(position)) + upsample(norm(neighbors)))
backward   dlogits = ds s (1 - s);  the activation, the norm and the convolution backwards, and for the neighbours the
           sum over the positions that each value was repeated to
saved      s, position and the means and variances that were used

Maps of one channel, 1 / C of what x is, so that what counts is the number of launches: 2 forward, 3 backward (the last
adds up the filter's parts). Sums over the batch are left in parts, one a program, and each program of the next kernel
adds them up in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS, small
from csham.ops.triton.sums import added

__all__ = ["spatial_gate", "spatial_gate_backward"]

# Positions whose part in the filter's gradient is held at a time, beside each tap.
_STRIP = 32


class _Norm(NamedTuple):
    """One batch norm of a single channel; ``mean`` and ``var`` are not read by a forward pass in training."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None


class _Cut(NamedTuple):
    """The positions of a batch of maps and the values of the neighbour term, in blocks: one a program."""

    B: int
    H: int
    W: int
    coarse_h: int
    coarse_w: int
    block: int

    @classmethod
    def of(cls, mean: Tensor, neighbors: Tensor | None) -> _Cut:
        B, _, H, W = mean.shape
        h, w = (0, 0) if neighbors is None else neighbors.shape[2:]
        # Enough programs for a large GPU, and not so many that adding up their parts counts.
        return cls(B, H, W, h, w, min(max(triton.next_power_of_2(triton.cdiv(B * H * W, 1024)), 128), 1024))

    @property
    def positions(self) -> int:
        """Their number."""
        return self.B * self.H * self.W

    @property
    def coarse_positions(self) -> int:
        """Number of values of the neighbour term."""
        return self.B * self.coarse_h * self.coarse_w

    @property
    def blocks(self) -> int:
        """Programs over the positions."""
        return triton.cdiv(self.positions, self.block)

    @property
    def coarse_blocks(self) -> int:
        """Programs over the neighbour term."""
        return triton.cdiv(self.coarse_positions, self.block)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Arguments of every kernel."""
        return self.positions, self.H, self.W, self.coarse_positions, self.coarse_h, self.coarse_w


def spatial_gate(
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    neighbor_norm_weight: Tensor | None,
    neighbor_norm_bias: Tensor | None,
    neighbor_norm_mean: Tensor | None,
    neighbor_norm_var: Tensor | None,
    training: bool,
    neighbor_training: bool,
    eps: float,
    neighbor_eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Implement the operator ``spatial_gate``."""
    cut = _Cut.of(mean, neighbors)
    s, position = (mean.new_empty(mean.shape) for _ in range(2))
    if cut.positions == 0:
        return s, position, *mean.new_zeros(4).split(1)
    norm = _Norm(norm_weight, norm_bias, norm_mean, norm_var)
    neighbor_norm = _Norm(neighbor_norm_weight, neighbor_norm_bias, neighbor_norm_mean, neighbor_norm_var)
    statistics = tuple(mean.new_empty(1) for _ in range(4))
    parts = mean.new_empty((2, cut.blocks + cut.coarse_blocks))
    maps = _checked(mean, max, neighbors, weight, cut)
    position_kernel[(cut.blocks + (cut.coarse_blocks if neighbor_training else 0),)](
        *maps, position, parts, *cut.sizes, K=weight.shape[-1], TRAINING=training, BLOCK=cut.block, **OPTIONS
    )
    spatial_gate_kernel[(cut.blocks,)](
        position,
        maps[2],
        parts,
        *norm,
        *neighbor_norm,
        s,
        *statistics,
        *cut.sizes,
        eps,
        neighbor_eps,
        **_settings(training, neighbor_training, relu, cut),
    )
    return s, position, *statistics


def spatial_gate_backward(
    grad_s: Tensor,
    s: Tensor,
    position: Tensor,
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    neighbor_norm_weight: Tensor | None,
    neighbor_norm_bias: Tensor | None,
    neighbor_norm_mean: Tensor | None,
    neighbor_norm_var: Tensor | None,
    training: bool,
    neighbor_training: bool,
    eps: float,
    neighbor_eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Implement the operator ``spatial_gate_backward``."""
    cut, K = _Cut.of(mean, neighbors), weight.shape[-1]
    grad_mean, grad_max = (mean.new_empty(mean.shape) for _ in range(2))
    grad_neighbors = mean.new_empty(0 if neighbors is None else neighbors.shape)
    if cut.positions == 0:
        return grad_mean, grad_max, grad_neighbors, torch.zeros_like(weight), mean.new_zeros(4)
    norm = _Norm(norm_weight, norm_bias, norm_mean, norm_var)
    neighbor_norm = _Norm(neighbor_norm_weight, neighbor_norm_bias, neighbor_norm_mean, neighbor_norm_var)
    maps = _checked(mean, max, neighbors, weight, cut)
    given = (small(grad_s, cut.positions), small(s, cut.positions), small(position, cut.positions), *maps)
    settings = _settings(training, neighbor_training, relu, cut)
    sums = mean.new_empty((2, cut.blocks + cut.coarse_blocks))
    gathered, grad_norms = torch.empty_like(grad_neighbors), mean.new_empty(4)
    norms = (*norm, *neighbor_norm)
    grid = (cut.blocks + cut.coarse_blocks,)
    gate_sums_kernel[grid](*given, *norms, gathered, sums, *cut.sizes, eps, neighbor_eps, **settings)
    strips = min(cut.blocks, 256)  # programs of the filter's gradient
    grad_weight = mean.new_empty((strips, *weight.shape))
    gate_gradient_kernel[(strips + cut.blocks + cut.coarse_blocks,)](
        *given,
        *norms,
        gathered,
        sums,
        grad_mean,
        grad_max,
        grad_neighbors,
        grad_weight,
        grad_norms,
        *cut.sizes,
        strips,
        triton.cdiv(triton.cdiv(cut.positions, strips), _STRIP) * _STRIP,
        eps,
        neighbor_eps,
        K=K,
        TAPS=triton.next_power_of_2(K * K),
        STRIP=_STRIP,
        **settings,
    )
    (grad_filter,) = added(grad_weight)
    assert grad_filter is not None
    return grad_mean, grad_max, grad_neighbors, grad_filter, grad_norms


def _checked(mean: Tensor, max: Tensor, neighbors: Tensor | None, weight: Tensor, cut: _Cut) -> tuple[Any, ...]:
    k = weight.shape[-1]
    return (
        small(mean, cut.positions),
        small(max, cut.positions),
        small(neighbors, cut.coarse_positions),
        small(weight, 2 * k * k),
    )


def _settings(training: bool, neighbor_training: bool, relu: bool, cut: _Cut) -> dict[str, Any]:
    return {
        "TRAINING": training,
        "NEIGHBOR_TRAINING": neighbor_training,
        "RELU": relu,
        "REPEATS_H": triton.cdiv(cut.H, cut.coarse_h) if cut.coarse_h else 0,
        "REPEATS_W": triton.cdiv(cut.W, cut.coarse_w) if cut.coarse_w else 0,
        # The largest product of two places along a side (_repeated_at, _first_at): 2**31 from 65,535 positions on.
        "WIDE": 2 * max((cut.H + 1) * cut.coarse_h, (cut.W + 1) * cut.coarse_w) >= 2**31,
        "BLOCK": cut.block,
        **OPTIONS,
    }


@triton.jit
def _block(pid, count, BLOCK: tl.constexpr):
    """Numbers of a program's values, in integers as wide as ``count`` needs."""
    return (pid + 0 * count) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _inside(pid, count, BLOCK: tl.constexpr):
    """How many of a program's values there are."""
    return tl.minimum(count - (pid + 0 * count) * BLOCK, BLOCK)


@triton.jit
def _repeated_at(positions, length, coarse, WIDE: tl.constexpr):
    """Numbers of the values that positions along a side repeat."""
    if WIDE:
        positions = positions.to(tl.int64)
    return (2 * positions + 1) * coarse // (2 * length)


@triton.jit
def _first_at(values, length, coarse, WIDE: tl.constexpr):
    """First positions along a side that repeat values."""
    if WIDE:
        values = values.to(tl.int64)
    return (2 * length * values + coarse - 1) // (2 * coarse)


@triton.jit
def _store_moments(parts_ptr, pid, programs, values, mask, inside):
    """Store the mean of ``inside`` values and the sum of the squares of what they differ from it."""
    mean = tl.sum(tl.where(mask, values, 0.0), 0) / inside
    away = tl.where(mask, values - mean, 0.0)
    tl.store(parts_ptr + pid, mean)
    tl.store(parts_ptr + programs + pid, tl.sum(away * away, 0))


@triton.jit
def _combined_moments(parts_ptr, first, parts, programs, count, BLOCK: tl.constexpr):
    """Mean and biased variance of ``count`` values from those of their blocks (Chan, Golub and LeVeque, 1979)."""
    total = tl.zeros([256], tl.float32)
    for start in range(0, parts, 256):
        offs = start + tl.arange(0, 256)
        inside = _inside(offs, count, BLOCK).to(tl.float32)
        total += inside * tl.load(parts_ptr + first + offs, mask=offs < parts, other=0.0)
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([256], tl.float32)
    for start in range(0, parts, 256):
        offs = start + tl.arange(0, 256)
        kept = offs < parts
        inside = _inside(offs, count, BLOCK).to(tl.float32)
        away = tl.load(parts_ptr + first + offs, mask=kept, other=0.0) - mean
        within = tl.load(parts_ptr + programs + first + offs, mask=kept, other=0.0)
        squares += tl.where(kept, within + inside * away * away, 0.0)
    return mean, tl.sum(squares, 0) / count


@triton.jit
def _collected(parts_ptr, first, parts):
    """Add up parts, in the same order in every program."""
    total = tl.zeros([256], tl.float32)
    for start in range(0, parts, 256):
        offs = start + tl.arange(0, 256)
        total += tl.load(parts_ptr + first + offs, mask=offs < parts, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _or(ptr, default):
    """The value there, or what stands for it."""
    return default if ptr is None else tl.load(ptr)


@triton.jit
def _activated(position, mean, rstd, weight_ptr, bias_ptr):
    return (position - mean) * rstd * _or(weight_ptr, 1.0) + _or(bias_ptr, 0.0)


@triton.jit
def position_kernel(
    mean_ptr,
    max_ptr,
    neighbors_ptr,
    weight_ptr,
    position_ptr,
    parts_ptr,
    count,
    H,
    W,
    coarse_count,
    coarse_h,
    coarse_w,
    K: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks = tl.cdiv(count, BLOCK)
    programs = blocks + tl.cdiv(coarse_count, BLOCK)
    if pid < blocks:
        offs = _block(pid, count, BLOCK)
        mask = offs < count
        row, col = offs // W % H, offs % W
        position = tl.zeros([BLOCK], tl.float32)
        for u in range(K):
            for v in tl.static_range(K):
                down, right = u - K // 2, v - K // 2
                inside = mask & (row + down >= 0) & (row + down < H) & (col + right >= 0) & (col + right < W)
                source = offs + (down * W + right)
                position += tl.load(weight_ptr + u * K + v) * tl.load(mean_ptr + source, mask=inside, other=0.0)
                tap = tl.load(weight_ptr + (K + u) * K + v)
                position += tap * tl.load(max_ptr + source, mask=inside, other=0.0)
        tl.store(position_ptr + offs, position, mask=mask)
        if TRAINING:
            _store_moments(parts_ptr, pid, programs, position, mask, _inside(pid, count, BLOCK))
    elif neighbors_ptr is not None:
        block = pid - blocks
        offs = _block(block, coarse_count, BLOCK)
        mask = offs < coarse_count
        values = tl.load(neighbors_ptr + offs, mask=mask, other=0.0)
        _store_moments(parts_ptr, pid, programs, values, mask, _inside(block, coarse_count, BLOCK))


@triton.jit
def spatial_gate_kernel(
    position_ptr,
    neighbors_ptr,
    parts_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    neighbor_weight_ptr,
    neighbor_bias_ptr,
    neighbor_mean_ptr,
    neighbor_var_ptr,
    s_ptr,
    out_mean_ptr,
    out_var_ptr,
    out_neighbor_mean_ptr,
    out_neighbor_var_ptr,
    count,
    H,
    W,
    coarse_count,
    coarse_h,
    coarse_w,
    eps,
    neighbor_eps,
    TRAINING: tl.constexpr,
    NEIGHBOR_TRAINING: tl.constexpr,
    RELU: tl.constexpr,
    REPEATS_H: tl.constexpr,
    REPEATS_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks, coarse_blocks = tl.cdiv(count, BLOCK), tl.cdiv(coarse_count, BLOCK)
    offs = _block(pid, count, BLOCK)
    mask = offs < count
    row, col, b = offs // W % H, offs % W, offs // (H * W)
    if TRAINING:
        mean, var = _combined_moments(parts_ptr, 0, blocks, blocks + coarse_blocks, count, BLOCK)
        out_mean, out_var = mean, var
    else:
        mean, var = tl.load(mean_ptr), tl.load(var_ptr)
        out_mean, out_var = tl.zeros_like(mean), tl.zeros_like(var)
    position = tl.load(position_ptr + offs, mask=mask, other=0.0)
    logits = _activated(position, mean, tl.rsqrt(var + eps), weight_ptr, bias_ptr)
    if RELU:
        logits = tl.where(logits < 0, 0.0, logits)  # NaN stays NaN
    out_neighbor_mean, out_neighbor_var = tl.zeros_like(mean), tl.zeros_like(var)
    if neighbors_ptr is not None:
        if NEIGHBOR_TRAINING:
            neighbor_mean, neighbor_var = _combined_moments(
                parts_ptr, blocks, coarse_blocks, blocks + coarse_blocks, coarse_count, BLOCK
            )
            out_neighbor_mean, out_neighbor_var = neighbor_mean, neighbor_var
        else:
            neighbor_mean, neighbor_var = tl.load(neighbor_mean_ptr), tl.load(neighbor_var_ptr)
        i, j = _repeated_at(row, H, coarse_h, WIDE), _repeated_at(col, W, coarse_w, WIDE)
        around = tl.load(neighbors_ptr + (b * coarse_h + i) * coarse_w + j, mask=mask, other=0.0)
        rstd = tl.rsqrt(neighbor_var + neighbor_eps)
        logits += _activated(around, neighbor_mean, rstd, neighbor_weight_ptr, neighbor_bias_ptr)
    tl.store(s_ptr + offs, 1 / (1 + tl.exp(-logits)), mask=mask)
    if pid == 0:
        tl.store(out_mean_ptr, out_mean)
        tl.store(out_var_ptr, out_var)
        tl.store(out_neighbor_mean_ptr, out_neighbor_mean)
        tl.store(out_neighbor_var_ptr, out_neighbor_var)


@triton.jit
def _norm_gradient(ds_ptr, s_ptr, position_ptr, offs, mask, mean, rstd, weight_ptr, bias_ptr, RELU: tl.constexpr):
    """Return the gradient of the norm's output, and its input normalised; the gradient is zero outside ``mask``."""
    s = tl.load(s_ptr + offs, mask=mask, other=0.0)
    grad = tl.load(ds_ptr + offs, mask=mask, other=0.0) * s * (1 - s)
    normal = (tl.load(position_ptr + offs, mask=mask, other=0.0) - mean) * rstd
    if RELU:
        grad = tl.where(normal * _or(weight_ptr, 1.0) + _or(bias_ptr, 0.0) <= 0, 0.0, grad)
    return grad, normal


@triton.jit
def gate_sums_kernel(
    ds_ptr,
    s_ptr,
    position_ptr,
    _mean_ptr,
    _max_ptr,
    neighbors_ptr,
    _filter_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    _neighbor_weight_ptr,
    _neighbor_bias_ptr,
    neighbor_mean_ptr,
    neighbor_var_ptr,
    gathered_ptr,
    sums_ptr,
    count,
    H,
    W,
    coarse_count,
    coarse_h,
    coarse_w,
    eps,
    neighbor_eps,
    TRAINING: tl.constexpr,
    NEIGHBOR_TRAINING: tl.constexpr,
    RELU: tl.constexpr,
    REPEATS_H: tl.constexpr,
    REPEATS_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the batch of both norms' gradients, alone and times what was normalised; and those of the repeats."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(count, BLOCK)
    programs = blocks + tl.cdiv(coarse_count, BLOCK)
    if pid < blocks:
        offs = _block(pid, count, BLOCK)
        rstd = tl.rsqrt(tl.load(var_ptr) + eps)
        grad, normal = _norm_gradient(
            ds_ptr, s_ptr, position_ptr, offs, offs < count, tl.load(mean_ptr), rstd, weight_ptr, bias_ptr, RELU
        )
        tl.store(sums_ptr + pid, tl.sum(grad, 0))
        tl.store(sums_ptr + programs + pid, tl.sum(tl.where(offs < count, grad * normal, 0.0), 0))
    elif neighbors_ptr is not None:
        offs = _block(pid - blocks, count, BLOCK)  # as wide as the positions that it is multiplied up to
        mask = offs < coarse_count
        j, i, b = offs % coarse_w, offs // coarse_w % coarse_h, offs // (coarse_w * coarse_h)
        top, left = _first_at(i, H, coarse_h, WIDE), _first_at(j, W, coarse_w, WIDE)
        bottom, end = _first_at(i + 1, H, coarse_h, WIDE), _first_at(j + 1, W, coarse_w, WIDE)
        grad = tl.zeros([BLOCK], tl.float32)
        for down in range(REPEATS_H):
            for right in range(REPEATS_W):
                inside = mask & (top + down < bottom) & (left + right < end)
                source = (b * H + top + down) * W + left + right
                s = tl.load(s_ptr + source, mask=inside, other=0.0)
                grad += tl.load(ds_ptr + source, mask=inside, other=0.0) * s * (1 - s)
        tl.store(gathered_ptr + offs, grad, mask=mask)
        rstd = tl.rsqrt(tl.load(neighbor_var_ptr) + neighbor_eps)
        normal = (tl.load(neighbors_ptr + offs, mask=mask, other=0.0) - tl.load(neighbor_mean_ptr)) * rstd
        tl.store(sums_ptr + pid, tl.sum(grad, 0))
        tl.store(sums_ptr + programs + pid, tl.sum(tl.where(mask, grad * normal, 0.0), 0))


@triton.jit
def gate_gradient_kernel(
    ds_ptr,
    s_ptr,
    position_ptr,
    mean_map_ptr,
    max_map_ptr,
    neighbors_ptr,
    filter_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    neighbor_weight_ptr,
    neighbor_bias_ptr,
    neighbor_mean_ptr,
    neighbor_var_ptr,
    gathered_ptr,
    sums_ptr,
    dmean_ptr,
    dmax_ptr,
    dneighbors_ptr,
    dfilter_ptr,
    dnorms_ptr,
    count,
    H,
    W,
    coarse_count,
    coarse_h,
    coarse_w,
    strips,
    length,
    eps,
    neighbor_eps,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    STRIP: tl.constexpr,
    TRAINING: tl.constexpr,
    NEIGHBOR_TRAINING: tl.constexpr,
    RELU: tl.constexpr,
    REPEATS_H: tl.constexpr,
    REPEATS_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients: the first programs those of the filter, in parts, the next of the statistics, the last of the
    neighbour term.
    """
    pid = tl.program_id(0)
    blocks, coarse_blocks = tl.cdiv(count, BLOCK), tl.cdiv(coarse_count, BLOCK)
    programs = blocks + coarse_blocks
    if pid < strips + blocks:
        mean, rstd = tl.load(mean_ptr), tl.rsqrt(tl.load(var_ptr) + eps)
        dbias, dweight = _collected(sums_ptr, 0, blocks), _collected(sums_ptr, programs, blocks)
        scale = rstd * _or(weight_ptr, 1.0)
        along, away = dbias / count, dweight / count
        if not TRAINING:  # the statistics were constants
            along, away = tl.zeros_like(along), tl.zeros_like(away)
        if pid == 0:
            tl.store(dnorms_ptr, dweight)
            tl.store(dnorms_ptr + 1, dbias)
            if neighbors_ptr is None:
                tl.store(dnorms_ptr + 2, 0.0)
                tl.store(dnorms_ptr + 3, 0.0)
        if pid < strips:
            tap = tl.arange(0, TAPS)
            down, right = tap // K - K // 2, tap % K - K // 2
            from_mean, from_max = tl.zeros([TAPS, STRIP], tl.float32), tl.zeros([TAPS, STRIP], tl.float32)
            begin = (pid + 0 * count) * length
            for start in range(0, length, STRIP):
                offs = begin + start + tl.arange(0, STRIP)
                mask = offs < count
                grad, normal = _norm_gradient(
                    ds_ptr, s_ptr, position_ptr, offs, mask, mean, rstd, weight_ptr, bias_ptr, RELU
                )
                grad = tl.where(mask, (grad - along - normal * away) * scale, 0.0)[None, :]
                row, col = offs // W % H, offs % W
                row, col = row[None, :] + down[:, None], col[None, :] + right[:, None]
                inside = (mask[None, :] & (tap < K * K)[:, None]) & (row >= 0) & (row < H) & (col >= 0) & (col < W)
                source = offs[None, :] + (down * W + right)[:, None]
                from_mean += grad * tl.load(mean_map_ptr + source, mask=inside, other=0.0)
                from_max += grad * tl.load(max_map_ptr + source, mask=inside, other=0.0)
            out = dfilter_ptr + pid * (2 * K * K) + tap
            tl.store(out, tl.sum(from_mean, 1), mask=tap < K * K)
            tl.store(out + K * K, tl.sum(from_max, 1), mask=tap < K * K)
        else:
            offs = _block(pid - strips, count, BLOCK)
            mask = offs < count
            row, col = offs // W % H, offs % W
            dmean, dmax = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for u in range(K):
                for v in range(K):
                    down, right = K // 2 - u, K // 2 - v
                    inside = mask & (row + down >= 0) & (row + down < H) & (col + right >= 0) & (col + right < W)
                    source = offs + (down * W + right)
                    grad, normal = _norm_gradient(
                        ds_ptr, s_ptr, position_ptr, source, inside, mean, rstd, weight_ptr, bias_ptr, RELU
                    )
                    grad = tl.where(inside, (grad - along - normal * away) * scale, 0.0)
                    dmean += tl.load(filter_ptr + u * K + v) * grad
                    dmax += tl.load(filter_ptr + (K + u) * K + v) * grad
            tl.store(dmean_ptr + offs, dmean, mask=mask)
            tl.store(dmax_ptr + offs, dmax, mask=mask)
    elif neighbors_ptr is not None:
        block = pid - strips - blocks
        offs = _block(block, coarse_count, BLOCK)
        mask = offs < coarse_count
        rstd = tl.rsqrt(tl.load(neighbor_var_ptr) + neighbor_eps)
        dbias = _collected(sums_ptr, blocks, coarse_blocks)
        dweight = _collected(sums_ptr, programs + blocks, coarse_blocks)
        grad = tl.load(gathered_ptr + offs, mask=mask, other=0.0)
        if NEIGHBOR_TRAINING:
            normal = (tl.load(neighbors_ptr + offs, mask=mask, other=0.0) - tl.load(neighbor_mean_ptr)) * rstd
            grad -= (dbias + normal * dweight) / coarse_count
        tl.store(dneighbors_ptr + offs, grad * rstd * _or(neighbor_weight_ptr, 1.0), mask=mask)
        if block == 0:
            tl.store(dnorms_ptr + 2, dweight)
            tl.store(dnorms_ptr + 3, dbias)
