"""The gradient of x from all that was made of it: its scaling, the statistics over its channels and over its positions.

Of y = w s x; of mean_c, max_c and the neighbour term of t = wp x; of mean_hw and max_hw of x:

    dx = w s dz + wp (dmean[p] / C + dmax[p] / ties[p] [t == max[p]] + up(c, p))
       + dchannel_mean[c] / (H W) + dchannel_max[c] / channel_ties[c] [x == channel_max[c]]

up is the gradient of the neighbour term, a 2 x 2 average and a 3 x 3 convolution backwards. Two passes:

statistics gradient   reads x once; reduces over the positions, for each channel, to channel_ties, the gradient of wp
                      and the products of x's 2 x 2 sums with dneighbors under each of the 9 taps. The latter, E, are
                      enough for both dneighbor_weight = sum_b(wp E) and its share in dwp = .. + sum_taps(weight E)
input gradient        reads x and dz, writes dx

Between them one small kernel adds up what the programs left: here, or in hybrid_pool where more is made of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS, Map, Quads, small
from csham.ops.triton.normed import load_affine, normed_columns
from csham.ops.triton.quads import (
    cell,
    cell_sums,
    load_columns,
    neighbor_gradients,
    quad_corner,
    store_columns,
    tap,
)
from csham.ops.triton.reductions import collect

__all__ = ["PoolBackward", "collect_statistics_gradient"]

# For each channel: gradient of wp without the neighbour term, ties, and E for 9 taps.
_SLOTS = 11


class PoolBackward:
    """Values that one call knows, passes and returns; ``None`` for those there are not."""

    def __init__(
        self,
        grad_z: Tensor | None,
        x: Tensor,
        affine: Tensor | None,
        w: Tensor | None,
        s: Tensor | None,
        map_: Map,
    ):
        self.x, self.affine, self.map = x, small(affine, 2 * map_.C), map_
        # Weights without a gradient to carry say nothing.
        self.scaled = (grad_z, None if grad_z is None else w, None if grad_z is None else s)
        self.position_w: Tensor | None = None
        self.grad_position_mean: Tensor | None = None
        self.grad_position_max: Tensor | None = None
        self.position_max: Tensor | None = None
        self.position_ties: Tensor | None = None
        self.grad_neighbors: Tensor | None = None
        self.neighbor_weight: Tensor | None = None
        self.channel_max: Tensor | None = None
        self.grad_channel_mean: Tensor | None = None
        self.grad_channel_max: Tensor | None = None
        self.channel_ties: Tensor | None = None
        self._grad_w: Tensor | None = None
        # Of the neighbour term's filters, (B, 9 C), to be added up.
        self.filter_parts: Tensor | None = None

    def set_positions(
        self,
        position_w: Tensor | None,
        grad_mean: Tensor | None,
        grad_max: Tensor | None,
        max: Tensor | None,
        ties: Tensor | None,
        grad_neighbors: Tensor | None,
        neighbor_weight: Tensor | None,
    ) -> None:
        """Take what belongs to the statistics over the channels."""
        map_ = self.map
        positions = map_.B * map_.positions
        self.position_w = small(position_w, map_.B * map_.C)
        self.grad_position_mean, self.position_max = small(grad_mean, positions), small(max, positions)
        self.grad_position_max, self.position_ties = small(grad_max, positions), small(ties, positions)
        self.neighbor_weight = small(neighbor_weight, 9 * map_.C)
        if neighbor_weight is not None and grad_neighbors is not None and min(map_.H, map_.W) >= 2:
            coarse = ((map_.H // 2 + 1) // 2) * ((map_.W // 2 + 1) // 2)
            self.grad_neighbors = small(grad_neighbors, map_.B * coarse)

    def gather(self) -> None:
        """Compute everything that needs x before its gradient can be written, and is needed."""
        if self.position_w is None and self.grad_neighbors is None and self.channel_max is None:
            return
        parts, chunks = self.statistics_gradient()
        block = min(128, triton.next_power_of_2(self.map.C))
        finish_kernel[(self.map.B * triton.cdiv(self.map.C, block),)](
            parts, *self.outputs(), self.position_w, self.neighbor_weight, self.map.B, self.map.C, chunks,
            SLOTS=parts.shape[2], BLOCK=block, **OPTIONS,
        )  # fmt: skip

    def outputs(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Make room for the gradient of wp, the ties and the gradients of the neighbour term's filters."""
        B, C = self.map.B, self.map.C
        new = self.x.new_empty
        self._grad_w = None if self.position_w is None else new((B, C), dtype=torch.float32)
        self.channel_ties = None if self.channel_max is None else new((B, C), dtype=torch.float32)
        self.filter_parts = None if self.grad_neighbors is None else new((B, 9 * C), dtype=torch.float32)
        return self._grad_w, self.channel_ties, self.filter_parts

    def statistics_gradient(self) -> tuple[Tensor, int]:
        """Run the first pass: (chunks, B, slots, C) to be added up, and the number of chunks."""
        map_ = self.map
        quads = Quads.of(map_, self.grad_neighbors is not None, 512 if map_.channels_last else 256, loop="q")
        slots = _SLOTS if self.grad_neighbors is not None else 2
        parts = self.x.new_empty((quads.chunks, map_.B, slots, map_.C), dtype=torch.float32)
        weighted = self.position_w is not None
        grid = (triton.cdiv(map_.C, quads.block_c) * quads.chunks * map_.B,)
        statistics_gradient_kernel[grid](
            self.x,
            self.affine,
            self.position_w,
            self.grad_position_mean if weighted else None,
            self.grad_position_max if weighted else None,
            self.position_max if weighted else None,
            self.position_ties if weighted else None,
            self.grad_neighbors,
            self.channel_max,
            parts,
            map_.B,
            quads.chunk,
            quads.chunks,
            SLOTS=slots,
            **quads.arguments(map_),
            **OPTIONS,
        )
        return parts, quads.chunks

    def input_gradient(self) -> Tensor:
        """Run the second pass."""
        map_ = self.map
        quads = Quads.of(map_, self.grad_neighbors is not None, 512 if map_.channels_last else 256, loop="c")
        grad_x = torch.empty_like(self.x)
        grid = (triton.cdiv(quads.per_image, quads.block_q) * quads.chunks * map_.B,)
        input_gradient_kernel[grid](
            *self.scaled,
            self.x,
            self.affine,
            self.position_w,
            self.grad_position_mean,
            self.grad_position_max,
            self.position_max,
            self.position_ties,
            self.grad_neighbors,
            self.neighbor_weight if self.grad_neighbors is not None else None,
            self.grad_channel_mean,
            self.grad_channel_max,
            self.channel_max,
            self.channel_ties,
            grad_x,
            map_.positions,
            quads.chunk,
            quads.chunks,
            **quads.arguments(map_),
            **OPTIONS,
        )
        return grad_x

    def grad_position_w(self) -> Tensor:
        """Return the gradient of wp, empty without one."""
        return self.x.new_empty(0, dtype=torch.float32) if self._grad_w is None else self._grad_w

    def grad_neighbor_weight(self, filters: Tensor | None) -> Tensor:
        """Return the gradient of the neighbour term's filters, from ``filter_parts`` added up; empty without any."""
        if self.neighbor_weight is None:
            return self.x.new_empty(0, dtype=torch.float32)
        return torch.zeros_like(self.neighbor_weight) if filters is None else filters.view(self.neighbor_weight.shape)


@triton.jit
def _shared(dmax_ptr, ties_ptr, offs_p, mask_p, col, W, CHANNELS_LAST: tl.constexpr):
    """Load 4 columns of the gradient of the maximum, in the equal shares of the channels that have it."""
    dmax = load_columns(dmax_ptr, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
    ties = load_columns(ties_ptr, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
    shares = ()
    for o in tl.static_range(4):
        shares = shares + (dmax[o] / tl.maximum(ties[o], 1.0),)  # none where the map ends, or is NaN
    return shares


@triton.jit
def statistics_gradient_kernel(
    x_ptr,
    affine_ptr,
    w_ptr,
    dmean_ptr,
    dmax_ptr,
    position_max_ptr,
    position_ties_ptr,
    dneighbors_ptr,
    channel_max_ptr,
    parts_ptr,
    B,
    chunk,
    chunks,
    C,
    H,
    W_UNITS,
    SLOTS: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    ODD_H: tl.constexpr,
    ODD_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    W = W_UNITS * UNIT
    stride_c = 1 if CHANNELS_LAST else H * W
    stride_hw = C if CHANNELS_LAST else 1
    quads = tl.cdiv(H, ROWS) * tl.cdiv(W, 4)
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    pid_c, pid_chunk, b = pid % blocks_c, pid // blocks_c % chunks, (pid // blocks_c // chunks).to(tl.int64)
    offs_c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    x_ptr += b * C * H * W
    position = b * H * W
    if affine_ptr is not None:
        scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
    if w_ptr is not None:
        w = tl.load(w_ptr + b * C + offs_c, mask=mask_c, other=0.0)[:, None]
    if channel_max_ptr is not None:
        channel_max = tl.load(channel_max_ptr + b * C + offs_c, mask=mask_c, other=0.0)[:, None]
    if dneighbors_ptr is not None:
        dneighbors_ptr += b * ((H // 2 + 1) // 2) * ((W // 2 + 1) // 2)

    zero = tl.zeros([BLOCK_C, BLOCK_Q], tl.float32)
    dw, ties = zero, zero
    products = ()
    for _ in tl.static_range(9):
        products = products + (zero,)
    begin = pid_chunk * chunk
    end = tl.minimum(begin + chunk, quads)
    for q in range(begin, end, BLOCK_Q):
        offs_q = q + tl.arange(0, BLOCK_Q)
        mask_q = offs_q < end
        row, col = quad_corner(offs_q, W, ROWS)
        cells = ()
        left, right = zero, zero
        for r in tl.static_range(ROWS):
            offs_p = ((row + r) * W + col)[None, :]
            mask_p = (mask_q & (row + r < H))[None, :]
            mask = mask_c[:, None] & mask_p
            offs = offs_c[:, None] * stride_c + offs_p * stride_hw
            x = load_columns(x_ptr, offs, mask, col, W, stride_hw, CHANNELS_LAST)
            if affine_ptr is not None:
                x = normed_columns(x, scale, shift, x_ptr.dtype.element_ty)
            if w_ptr is not None:
                dmean = load_columns(dmean_ptr + position, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
                dmax = _shared(dmax_ptr + position, position_ties_ptr + position, offs_p, mask_p, col, W, CHANNELS_LAST)
                top = load_columns(position_max_ptr + position, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
                for o in tl.static_range(4):
                    dw += x[o] * (dmean[o] / C + tl.where(w * x[o] == top[o], dmax[o], 0.0))
            if channel_max_ptr is not None:
                for o in tl.static_range(4):
                    tied = mask & (col + o < W)[None, :] & (x[o] == channel_max)
                    ties += tl.where(tied, 1.0, 0.0)
            left, right = left + (x[0] + x[1]), right + (x[2] + x[3])
            if dneighbors_ptr is not None and r % 2 == 1:
                cells = cells + cell_sums(left, right, row + (r - 1), col, H, W, 1)
                left, right = zero, zero
        if dneighbors_ptr is not None:
            grads = neighbor_gradients(dneighbors_ptr, row, col, H, W, mask_q, ODD_H, ODD_W)
            new_products = ()
            for u in tl.static_range(3):
                for v in tl.static_range(3):
                    grad = grads[2 * (u // 2) + v // 2][None, :]
                    product = products[3 * u + v] + grad * cells[2 * cell(u, ODD_H) + cell(v, ODD_W)]
                    new_products = new_products + (product,)
            products = new_products

    parts_ptr += (pid_chunk * B + b) * SLOTS * C + offs_c
    tl.store(parts_ptr, tl.sum(dw, 1), mask=mask_c)
    tl.store(parts_ptr + C, tl.sum(ties, 1), mask=mask_c)
    if dneighbors_ptr is not None:
        for u in tl.static_range(3):
            for v in tl.static_range(3):
                slot = 2 + 3 * tap(u, ODD_H) + tap(v, ODD_W)
                tl.store(parts_ptr + slot * C, tl.sum(products[3 * u + v], 1), mask=mask_c)


@triton.jit
def collect_statistics_gradient(
    parts_ptr,
    dw_ptr,
    ties_ptr,
    dfilters_ptr,
    w_ptr,
    filters_ptr,
    b,
    offs_c,
    B,
    C,
    chunks,
    SLOTS: tl.constexpr,
):
    """Bring the parts of the first pass together, store what there is room for, and return the gradient of wp."""
    mask_c = offs_c < C
    stride = B * SLOTS * C
    parts_ptr += b * SLOTS * C
    dw = collect(parts_ptr, offs_c, mask_c, chunks, stride)
    if ties_ptr is not None:
        tl.store(ties_ptr + b * C + offs_c, collect(parts_ptr + C, offs_c, mask_c, chunks, stride), mask=mask_c)
    if dfilters_ptr is not None:
        for k in tl.static_range(9):
            product = collect(parts_ptr + (2 + k) * C, offs_c, mask_c, chunks, stride)
            dw += product * tl.load(filters_ptr + offs_c * 9 + k, mask=mask_c, other=0.0)
            if w_ptr is not None:
                product *= tl.load(w_ptr + b * C + offs_c, mask=mask_c, other=0.0)
            tl.store(dfilters_ptr + b * 9 * C + offs_c * 9 + k, product, mask=mask_c)
    if dw_ptr is not None:
        tl.store(dw_ptr + b * C + offs_c, dw, mask=mask_c)
    return dw


@triton.jit
def finish_kernel(
    parts_ptr,
    dw_ptr,
    ties_ptr,
    dfilters_ptr,
    w_ptr,
    filters_ptr,
    B,
    C,
    chunks,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(C, BLOCK)
    pid = tl.program_id(0)
    offs_c = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    collect_statistics_gradient(
        parts_ptr,
        dw_ptr,
        ties_ptr,
        dfilters_ptr,
        w_ptr,
        filters_ptr,
        (pid // blocks).to(tl.int64),
        offs_c,
        B,
        C,
        chunks,
        SLOTS,
    )


@triton.jit
def input_gradient_kernel(
    dz_ptr,
    w_ptr,
    s_ptr,
    x_ptr,
    affine_ptr,
    position_w_ptr,
    dmean_ptr,
    dmax_ptr,
    position_max_ptr,
    position_ties_ptr,
    dneighbors_ptr,
    filters_ptr,
    dchannel_mean_ptr,
    dchannel_max_ptr,
    channel_max_ptr,
    channel_ties_ptr,
    dx_ptr,
    P,
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
    W = W_UNITS * UNIT
    stride_c = 1 if CHANNELS_LAST else H * W
    stride_hw = C if CHANNELS_LAST else 1
    quads = tl.cdiv(H, ROWS) * tl.cdiv(W, 4)
    blocks_q = tl.cdiv(quads, BLOCK_Q)
    pid = tl.program_id(0)
    pid_q, pid_chunk, b = pid % blocks_q, pid // blocks_q % chunks, (pid // blocks_q // chunks).to(tl.int64)
    offs_q = pid_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < quads
    row, col = quad_corner(offs_q, W, ROWS)
    image = b * C * H * W
    position = b * H * W
    if dneighbors_ptr is not None:
        dneighbors_ptr += b * ((H // 2 + 1) // 2) * ((W // 2 + 1) // 2)
        grads = neighbor_gradients(dneighbors_ptr, row, col, H, W, mask_q, ODD_H, ODD_W)

    zero = tl.zeros([BLOCK_C, BLOCK_Q], tl.float32)
    begin = pid_chunk * chunk
    end = tl.minimum(begin + chunk, C)
    for c in range(begin, end, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < end
        channel = b * C + offs_c
        if w_ptr is not None:
            w = tl.load(w_ptr + channel, mask=mask_c, other=0.0)[:, None]
        if affine_ptr is not None:
            scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
        if position_w_ptr is not None:
            position_w = tl.load(position_w_ptr + channel, mask=mask_c, other=0.0)[:, None]
        constant = zero
        if dchannel_mean_ptr is not None:
            constant += (tl.load(dchannel_mean_ptr + channel, mask=mask_c, other=0.0) / P)[:, None]
        if channel_max_ptr is not None:
            channel_max = tl.load(channel_max_ptr + channel, mask=mask_c, other=0.0)[:, None]
            ties = tl.load(channel_ties_ptr + channel, mask=mask_c, other=1.0)
            dchannel_max = (tl.load(dchannel_max_ptr + channel, mask=mask_c, other=0.0) / ties)[:, None]
        up = (zero, zero, zero, zero)
        if dneighbors_ptr is not None:
            for u in tl.static_range(3):
                for v in tl.static_range(3):
                    offs_k = offs_c * 9 + (3 * tap(u, ODD_H) + tap(v, ODD_W))
                    k = tl.load(filters_ptr + offs_k, mask=mask_c, other=0.0)[:, None]
                    term = k * grads[2 * (u // 2) + v // 2][None, :]
                    new_up = ()
                    for i in tl.static_range(4):
                        if i == 2 * cell(u, ODD_H) + cell(v, ODD_W):
                            new_up = new_up + (up[i] + term,)
                        else:
                            new_up = new_up + (up[i],)
                    up = new_up
            up = cell_sums(up[0], up[1], row, col, H, W, 1) + cell_sums(up[2], up[3], row + 2, col, H, W, 1)
        for r in tl.static_range(ROWS):
            offs_p = ((row + r) * W + col)[None, :]
            mask_p = (mask_q & (row + r < H))[None, :]
            mask = mask_c[:, None] & mask_p
            offs = offs_c[:, None] * stride_c + offs_p * stride_hw
            dx = (constant, constant, constant, constant)
            if position_max_ptr is not None or channel_max_ptr is not None:
                x = load_columns(x_ptr + image, offs, mask, col, W, stride_hw, CHANNELS_LAST)
                if affine_ptr is not None:
                    x = normed_columns(x, scale, shift, x_ptr.dtype.element_ty)
            if channel_max_ptr is not None:
                new_dx = ()
                for o in tl.static_range(4):
                    new_dx = new_dx + (dx[o] + tl.where(x[o] == channel_max, dchannel_max, 0.0),)
                dx = new_dx
            if position_max_ptr is not None:
                dmean = load_columns(dmean_ptr + position, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
                dmax = _shared(dmax_ptr + position, position_ties_ptr + position, offs_p, mask_p, col, W, CHANNELS_LAST)
                top = load_columns(position_max_ptr + position, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
                new_dx = ()
                for o in tl.static_range(4):
                    dt = dmean[o] / C + up[2 * (r // 2) + o // 2]
                    if position_w_ptr is not None:
                        dt += tl.where(position_w * x[o] == top[o], dmax[o], 0.0)
                        new_dx = new_dx + (dx[o] + position_w * dt,)
                    else:
                        dt += tl.where(x[o] == top[o], dmax[o], 0.0)
                        new_dx = new_dx + (dx[o] + dt,)
                dx = new_dx
            if dz_ptr is not None:
                dz = load_columns(dz_ptr + image, offs, mask, col, W, stride_hw, CHANNELS_LAST)
                if w_ptr is not None:
                    dz = (w * dz[0], w * dz[1], w * dz[2], w * dz[3])
                if s_ptr is not None:
                    s = load_columns(s_ptr + position, offs_p, mask_p, col, W, 1, CHANNELS_LAST)
                    dz = (s[0] * dz[0], s[1] * dz[1], s[2] * dz[2], s[3] * dz[3])
                dx = (dx[0] + dz[0], dx[1] + dz[1], dx[2] + dz[2], dx[3] + dz[3])
            store_columns(dx_ptr + image, offs, dx, mask, col, W, stride_hw, CHANNELS_LAST)
