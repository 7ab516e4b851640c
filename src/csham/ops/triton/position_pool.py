"""Statistics over the channels of t = w x, and the 3 x 3 convolution of its 2 x 2 averages (the neighbour term).

forward    mean[b, p] = sum_c(t) / C;  max[b, p] = max_c(t);                 reads x once
           neighbors = conv3x3_stride2(avgpool2x2(t))
backward   dt = dmean / C + dmax / ties * [t == max] + up(dneighbors);            reads x twice and dz once,
           dw = sum_hw(dt x);  dx = w s dz + w dt;  dneighbor_weight         writes dx once; see pool_backward
saved      x, w, neighbor_weight, max; the ties are counted by the scaling's backward pass, which reads x anyway

The neighbour term costs 9 multiply-adds a quad of 16 positions (see quads), and 1 byte a position for what quads leave
for the output values around them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.operators.carry import carry
from csham.ops.operators.position_pool import neighbor_shape
from csham.ops.triton.maps import OPTIONS, Map, Quads, like, map_of, small
from csham.ops.triton.normed import load_affine, normed_columns
from csham.ops.triton.pool_backward import PoolBackward
from csham.ops.triton.quads import cell, cell_sums, load_columns, quad_corner, store_columns, tap
from csham.ops.triton.reductions import collect, maximum, maximum_over
from csham.ops.triton.sums import added

__all__ = ["position_pool", "position_pool_backward", "position_statistics"]


def position_pool(
    x: Tensor, affine: Tensor | None, w: Tensor | None, neighbor_weight: Tensor | None
) -> tuple[Tensor, ...]:
    """Implement the operator ``position_pool``."""
    map_ = map_of(x)
    statistics = position_statistics(x, affine, map_, small(w, map_.B * map_.C), small(neighbor_weight, 9 * map_.C))
    return *statistics, *carry(x)


def position_pool_backward(
    grad_z: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    position_w: Tensor | None,
    grad_mean: Tensor,
    grad_max: Tensor,
    max: Tensor,
    ties: Tensor,
    grad_neighbors: Tensor | None,
    neighbor_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement the operator ``position_pool_backward``."""
    map_ = map_of(x)
    channels, positions = map_.B * map_.C, map_.B * map_.positions
    backward = PoolBackward(like(grad_z, x), x, affine, small(w, channels), small(s, positions), map_)
    backward.set_positions(position_w, grad_mean, grad_max, max, ties, grad_neighbors, neighbor_weight)
    backward.gather()
    (filters,) = added(backward.filter_parts)
    return backward.input_gradient(), backward.grad_position_w(), backward.grad_neighbor_weight(filters)


def position_statistics(
    x: Tensor, affine: Tensor | None, map_: Map, w: Tensor | None, neighbor_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, maximum (B, 1, H, W) and the neighbour term (empty without ``neighbor_weight``)."""
    term = neighbor_weight is not None and min(map_.H, map_.W) >= 2
    quads = Quads.of(map_, term, 256, loop="c")
    mean = x.new_empty((quads.chunks, map_.B, map_.positions), dtype=torch.float32)
    maxima = torch.empty_like(mean)
    parts = x.new_empty((quads.chunks, map_.B, 4, quads.per_image), dtype=torch.float32) if term else None
    grid = (triton.cdiv(quads.per_image, quads.block_q) * quads.chunks * map_.B,)
    position_statistics_kernel[grid](
        x,
        small(affine, 2 * map_.C),
        w,
        neighbor_weight if term else None,
        mean,
        maxima,
        parts,
        map_.B,
        quads.chunk,
        quads.chunks,
        **quads.arguments(map_),
        **OPTIONS,
    )
    shape = (map_.B, 1, map_.H, map_.W)
    neighbors = x.new_empty(0 if neighbor_weight is None else neighbor_shape(x), dtype=torch.float32)
    if quads.chunks == 1:
        out_mean, out_max = mean.view(shape), maxima.view(shape)
    else:
        out_mean, out_max = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    if term or quads.chunks > 1:
        _combine(map_, quads, (mean, maxima, parts), out_mean, out_max, neighbors)
    return out_mean, out_max, neighbors


def _combine(
    map_: Map,
    quads: Quads,
    parts: tuple[Tensor, Tensor, Tensor | None],
    mean: Tensor,
    maxima: Tensor,
    neighbors: Tensor,
) -> None:
    positions = map_.B * map_.positions if quads.chunks > 1 else 0
    outputs = neighbors.numel() if parts[2] is not None else 0
    position_combine_kernel[(triton.cdiv(positions, 256) + triton.cdiv(outputs, 256),)](
        *parts,
        mean,
        maxima,
        neighbors,
        positions,
        outputs,
        map_.B,
        map_.H,
        map_.W,
        quads.chunks,
        ODD_H=map_.H // 2 % 2,
        ODD_W=map_.W // 2 % 2,
        BLOCK=256,
        **OPTIONS,
    )


@triton.jit
def position_statistics_kernel(
    x_ptr,
    affine_ptr,
    w_ptr,
    filters_ptr,
    mean_ptr,
    max_ptr,
    parts_ptr,
    B,
    chunk,
    chunks,
    C,
    H,
    W_UNITS,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    ODD_H: tl.constexpr,
    ODD_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    W = W_UNITS * UNIT  # tells the compiler how rows are aligned
    stride_c = 1 if CHANNELS_LAST else H * W
    stride_hw = C if CHANNELS_LAST else 1
    quads = tl.cdiv(H, ROWS) * tl.cdiv(W, 4)
    blocks_q = tl.cdiv(quads, BLOCK_Q)
    pid = tl.program_id(0)
    pid_q, pid_chunk, b = pid % blocks_q, pid // blocks_q % chunks, (pid // blocks_q // chunks).to(tl.int64)
    offs_q = pid_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < quads
    row, col = quad_corner(offs_q, W, ROWS)
    x_ptr += b * C * H * W

    zero = tl.zeros([BLOCK_C, BLOCK_Q], tl.float32)
    low = tl.full([BLOCK_C, BLOCK_Q], float("-inf"), tl.float32)
    totals, maxima = (), ()
    for _ in tl.static_range(4 * ROWS):
        totals, maxima = totals + (zero,), maxima + (low,)
    n0, n1, n2, n3 = zero, zero, zero, zero
    begin = pid_chunk * chunk
    end = tl.minimum(begin + chunk, C)
    for c in range(begin, end, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        if affine_ptr is not None:
            scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
        if w_ptr is not None:
            w = tl.load(w_ptr + b * C + offs_c, mask=mask_c, other=0.0)[:, None]
        new_totals, new_maxima, cells = (), (), ()
        left, right = zero, zero
        for r in tl.static_range(ROWS):
            offs = offs_c[:, None] * stride_c + ((row + r) * W + col)[None, :] * stride_hw
            mask = mask_c[:, None] & (mask_q & (row + r < H))[None, :]
            t = load_columns(x_ptr, offs, mask, col, W, stride_hw, CHANNELS_LAST)
            if affine_ptr is not None:
                t = normed_columns(t, scale, shift, x_ptr.dtype.element_ty)
            if w_ptr is not None:
                t = (w * t[0], w * t[1], w * t[2], w * t[3])
            for o in tl.static_range(4):
                new_totals = new_totals + (totals[4 * r + o] + t[o],)
                # Past the map nothing is stored; past the channels a zero must not win.
                value = tl.where(mask_c[:, None], t[o], float("-inf"))
                new_maxima = new_maxima + (maximum(maxima[4 * r + o], value),)
            left, right = left + (t[0] + t[1]), right + (t[2] + t[3])
            if filters_ptr is not None and r % 2 == 1:
                cells = cells + cell_sums(left, right, row + (r - 1), col, H, W, 1)
                left, right = zero, zero
        totals, maxima = new_totals, new_maxima
        if filters_ptr is not None:
            for u in tl.static_range(3):
                for v in tl.static_range(3):
                    offs_k = offs_c * 9 + (3 * tap(u, ODD_H) + tap(v, ODD_W))
                    k = tl.load(filters_ptr + offs_k, mask=mask_c, other=0.0)[:, None]
                    term = k * cells[2 * cell(u, ODD_H) + cell(v, ODD_W)]
                    if u < 2 and v < 2:
                        n0 += term
                    elif u < 2:
                        n1 += term
                    elif v < 2:
                        n2 += term
                    else:
                        n3 += term

    out = (pid_chunk * B + b) * H * W
    for r in tl.static_range(ROWS):
        offs = ((row + r) * W + col)[None, :]
        mask = (mask_q & (row + r < H))[None, :]
        means, tops = (), ()
        for o in tl.static_range(4):
            means = means + ((tl.sum(totals[4 * r + o], 0) / C)[None, :],)
            tops = tops + (maximum_over(maxima[4 * r + o], 0)[None, :],)
        store_columns(mean_ptr + out, offs, means, mask, col, W, 1, False)
        store_columns(max_ptr + out, offs, tops, mask, col, W, 1, False)
    if filters_ptr is not None:
        parts_ptr += (pid_chunk * B + b) * 4 * quads
        tl.store(parts_ptr + offs_q, tl.sum(n0, 0), mask=mask_q)
        tl.store(parts_ptr + quads + offs_q, tl.sum(n1, 0), mask=mask_q)
        tl.store(parts_ptr + 2 * quads + offs_q, tl.sum(n2, 0), mask=mask_q)
        tl.store(parts_ptr + 3 * quads + offs_q, tl.sum(n3, 0), mask=mask_q)


@triton.jit
def position_combine_kernel(
    mean_parts_ptr,
    max_parts_ptr,
    parts_ptr,
    mean_ptr,
    max_ptr,
    neighbors_ptr,
    positions,
    outputs,
    B,
    H,
    W,
    chunks,
    ODD_H: tl.constexpr,
    ODD_W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The first programs bring chunks of the channels together, the others quads and chunks.
    pid = tl.program_id(0)
    blocks = tl.cdiv(positions, BLOCK)
    if pid < blocks:
        offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < positions
        tl.store(mean_ptr + offs, collect(mean_parts_ptr, offs, mask, chunks, positions), mask=mask)
        maxima = tl.load(max_parts_ptr + offs, mask=mask, other=0.0)
        for _ in range(1, chunks):
            max_parts_ptr += positions
            maxima = maximum(maxima, tl.load(max_parts_ptr + offs, mask=mask, other=0.0))
        tl.store(max_ptr + offs, maxima, mask=mask)
    elif parts_ptr is not None:
        quads_h, quads_w = tl.cdiv(H, 4), tl.cdiv(W, 4)
        coarse_h, coarse_w = (H // 2 + 1) // 2, (W // 2 + 1) // 2
        offs = (pid - blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < outputs
        j = offs % coarse_w
        i = offs // coarse_w % coarse_h
        b = offs // (coarse_w * coarse_h)
        total = tl.zeros([BLOCK], tl.float32)
        for side_h in tl.static_range(2):
            for side_w in tl.static_range(2):
                qi = i + side_h * (1 - 2 * ODD_H)
                qj = j + side_w * (1 - 2 * ODD_W)
                kept = mask & (qi >= 0) & (qi < quads_h) & (qj >= 0) & (qj < quads_w)
                part = ((b * 4 + 2 * side_h + side_w) * quads_h + qi) * quads_w + qj
                total += collect(parts_ptr, part, kept, chunks, B * 4 * quads_h * quads_w)
        tl.store(neighbors_ptr + offs, 0.25 * total, mask=mask)
