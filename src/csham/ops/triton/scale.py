"""Scaling by channel and spatial weights, and the end of a residual block.

forward    y = w s x + shortcut;  y = max(y, 0)                   reads x (and shortcut) once, writes y once
backward   dz = dy [y != 0];  dw = sum_hw(dz s x);                reads dy and x (and y) once; with a ReLU writes dz
           ds = sum_c(dz w x);  ties = sum_c[wp x == max]
saved      x, w, s and with a ReLU y. dz is the shortcut's gradient too; dx = w s dz is left to the pooling's backward
           pass (pool_backward), which adds what else goes to x

dw and ds are sums over different sides of the map. A program walks along the slow side in memory, reduces each tile
over the fast one and keeps one sum over the slow one; both come in parts that are added up afterwards, 4 bytes for
up to 256 values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS, Blocks, like, map_of, small
from csham.ops.triton.normed import load_affine, normed
from csham.ops.triton.sums import added

__all__ = ["scale", "scale_backward"]


def scale(
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    position_w: Tensor | None,
    position_max: Tensor | None,
    *_carry: Tensor,
) -> Tensor:
    """Implement the operator ``scale``."""
    map_ = map_of(x)
    y = torch.empty_like(x)
    blocks = Blocks.of(map_, 2048, 256)
    grid = (triton.cdiv(map_.C, blocks.block_c) * triton.cdiv(map_.positions, blocks.block_hw) * map_.B,)
    scale_kernel[grid](
        x,
        small(affine, 2 * map_.C),
        small(w, map_.B * map_.C),
        small(s, map_.B * map_.positions),
        like(shortcut, x),
        y,
        map_.C,
        map_.positions,
        *map_.strides,
        RELU=relu,
        CHANNELS_LAST=map_.channels_last,
        BLOCK_C=blocks.block_c,
        BLOCK_HW=blocks.block_hw,
        **OPTIONS,
    )
    return y


def scale_backward(
    grad_y: Tensor,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    position_w: Tensor | None,
    position_max: Tensor | None,
    y: Tensor | None,
) -> tuple[Tensor, ...]:
    """Implement the operator ``scale_backward``."""
    map_ = map_of(x)
    B, C, P = map_.B, map_.C, map_.positions
    loop = "hw" if map_.channels_last else "c"
    blocks = Blocks.of(map_, 2048, 256, loop=loop)
    crossed = triton.cdiv(C, blocks.block_c) if map_.channels_last else triton.cdiv(P, blocks.block_hw)
    parts_w, parts_s = (blocks.chunks, crossed) if map_.channels_last else (crossed, blocks.chunks)

    def room(wanted: bool, *shape: int) -> Tensor | None:
        return x.new_empty(shape, dtype=torch.float32) if wanted else None

    grad_z = None if y is None else torch.empty_like(x)
    grad_w = room(w is not None, parts_w, B, C)
    grad_s = room(s is not None, parts_s, B, P)
    ties = room(position_max is not None, parts_s, B, P)
    if not all(out is None for out in (grad_z, grad_w, grad_s, ties)):
        scale_backward_kernel[(crossed * blocks.chunks * B,)](
            like(grad_y, x),
            x,
            small(affine, 2 * C),
            like(y, x),
            small(w, B * C),
            small(s, B * P),
            small(position_w, B * C),
            small(position_max, B * P),
            grad_z,
            grad_w,
            grad_s,
            ties,
            B,
            C,
            P,
            *map_.strides,
            blocks.chunk,
            blocks.chunks,
            CHANNELS_LAST=map_.channels_last,
            BLOCK_C=blocks.block_c,
            BLOCK_HW=blocks.block_hw,
            **OPTIONS,
        )
    positions = (B, 1, map_.H, map_.W)
    sums = added(grad_w, grad_s, ties)
    shaped = [
        x.new_empty(0, dtype=torch.float32) if one is None else one.view(shape)
        for one, shape in zip(sums, ((B, C), positions, positions), strict=True)
    ]
    return x.new_empty(0) if grad_z is None else grad_z, *shaped


@triton.jit
def scale_kernel(
    x_ptr,
    affine_ptr,
    w_ptr,
    s_ptr,
    shortcut_ptr,
    y_ptr,
    C,
    P,
    stride_c,
    stride_hw,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
):
    blocks_c, blocks_hw = tl.cdiv(C, BLOCK_C), tl.cdiv(P, BLOCK_HW)
    pid = tl.program_id(0)
    b = (pid // (blocks_c * blocks_hw)).to(tl.int64)
    # Neighbours in memory follow each other.
    if CHANNELS_LAST:
        pid_c, pid_hw = pid % blocks_c, pid // blocks_c % blocks_hw
    else:
        pid_c, pid_hw = pid // blocks_hw % blocks_c, pid % blocks_hw
    offs_c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_hw = pid_hw * BLOCK_HW + tl.arange(0, BLOCK_HW)
    mask_c, mask_hw = offs_c < C, offs_hw < P
    mask = mask_c[:, None] & mask_hw[None, :]
    image = b * C * P
    offs = offs_c[:, None] * stride_c + offs_hw[None, :] * stride_hw
    y = tl.load(x_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
    if affine_ptr is not None:
        scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
        y = normed(y, scale, shift, x_ptr.dtype.element_ty)
    if w_ptr is not None:
        y *= tl.load(w_ptr + b * C + offs_c, mask=mask_c, other=0.0)[:, None]
    if s_ptr is not None:
        y *= tl.load(s_ptr + b * P + offs_hw, mask=mask_hw, other=0.0)[None, :]
    if shortcut_ptr is not None:
        y += tl.load(shortcut_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
    tl.store(y_ptr + image + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def scale_backward_kernel(
    dy_ptr,
    x_ptr,
    affine_ptr,
    y_ptr,
    w_ptr,
    s_ptr,
    position_w_ptr,
    position_max_ptr,
    dz_ptr,
    dw_ptr,
    ds_ptr,
    ties_ptr,
    B,
    C,
    P,
    stride_c,
    stride_hw,
    chunk,
    chunks,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
):
    crossed = tl.cdiv(C, BLOCK_C) if CHANNELS_LAST else tl.cdiv(P, BLOCK_HW)
    pid = tl.program_id(0)
    pid_fast, pid_chunk, b = pid % crossed, pid // crossed % chunks, (pid // crossed // chunks).to(tl.int64)
    image, channel, position = b * C * P, b * C, b * P
    begin = pid_chunk * chunk
    dw = tl.zeros([BLOCK_C, BLOCK_HW], tl.float32)
    ds, ties = dw, dw
    if CHANNELS_LAST:
        offs_c = pid_fast * BLOCK_C + tl.arange(0, BLOCK_C)
        end = tl.minimum(begin + chunk, P)
        part_w, part_s = (pid_chunk * B + b) * C, (pid_fast * B + b) * P
        for start in range(begin, end, BLOCK_HW):
            offs_hw = start + tl.arange(0, BLOCK_HW)
            zx, zx_w, tied = _tile(
                dy_ptr, x_ptr, affine_ptr, y_ptr, w_ptr, position_w_ptr, position_max_ptr, dz_ptr,
                image, channel, position, C, offs_c, offs_hw, offs_c < C, offs_hw < end, stride_c, stride_hw,
            )  # fmt: skip
            if dw_ptr is not None:
                dw += _by_position(zx, s_ptr, position, offs_hw, offs_hw < end)
            if ds_ptr is not None:
                tl.store(ds_ptr + part_s + offs_hw, tl.sum(zx_w, 0), mask=offs_hw < end)
            if ties_ptr is not None:
                tl.store(ties_ptr + part_s + offs_hw, tl.sum(tied, 0), mask=offs_hw < end)
        if dw_ptr is not None:
            tl.store(dw_ptr + part_w + offs_c, tl.sum(dw, 1), mask=offs_c < C)
    else:
        offs_hw = pid_fast * BLOCK_HW + tl.arange(0, BLOCK_HW)
        end = tl.minimum(begin + chunk, C)
        part_w, part_s = (pid_fast * B + b) * C, (pid_chunk * B + b) * P
        for start in range(begin, end, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            zx, zx_w, tied = _tile(
                dy_ptr, x_ptr, affine_ptr, y_ptr, w_ptr, position_w_ptr, position_max_ptr, dz_ptr,
                image, channel, position, C, offs_c, offs_hw, offs_c < end, offs_hw < P, stride_c, stride_hw,
            )  # fmt: skip
            if dw_ptr is not None:
                part = tl.sum(_by_position(zx, s_ptr, position, offs_hw, offs_hw < P), 1)
                tl.store(dw_ptr + part_w + offs_c, part, mask=offs_c < end)
            if ds_ptr is not None:
                ds += zx_w
            if ties_ptr is not None:
                ties += tied
        if ds_ptr is not None:
            tl.store(ds_ptr + part_s + offs_hw, tl.sum(ds, 0), mask=offs_hw < P)
        if ties_ptr is not None:
            tl.store(ties_ptr + part_s + offs_hw, tl.sum(ties, 0), mask=offs_hw < P)


@triton.jit
def _tile(
    dy_ptr,
    x_ptr,
    affine_ptr,
    y_ptr,
    w_ptr,
    position_w_ptr,
    position_max_ptr,
    dz_ptr,
    image,
    channel,
    position,
    C,
    offs_c,
    offs_hw,
    mask_c,
    mask_hw,
    stride_c,
    stride_hw,
):
    """Store dz where there is room, and return dz x, dz w x and where wp x is the maximum, all (BLOCK_C, BLOCK_HW)."""
    mask = mask_c[:, None] & mask_hw[None, :]
    offs = offs_c[:, None] * stride_c + offs_hw[None, :] * stride_hw
    dz = tl.load(dy_ptr + image + offs, mask=mask, other=0.0)
    if y_ptr is not None:
        y = tl.load(y_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
        dz = tl.where(y != 0, dz, tl.zeros_like(dz))  # at NaN it passes, as torch's
        tl.store(dz_ptr + image + offs, dz, mask=mask)
    x = tl.load(x_ptr + image + offs, mask=mask, other=0.0).to(tl.float32)
    if affine_ptr is not None:
        scale, shift = load_affine(affine_ptr, offs_c, mask_c, C)
        x = normed(x, scale, shift, x_ptr.dtype.element_ty)
    zx = dz.to(tl.float32) * x
    zx_w = zx
    if w_ptr is not None:
        zx_w *= tl.load(w_ptr + channel + offs_c, mask=mask_c, other=0.0)[:, None]
    tied = mask
    if position_max_ptr is not None:
        top = tl.load(position_max_ptr + position + offs_hw, mask=mask_hw, other=0.0)[None, :]
        t = x
        if position_w_ptr is not None:
            t *= tl.load(position_w_ptr + channel + offs_c, mask=mask_c, other=0.0)[:, None]
        tied = mask & (t == top)
    return zx, zx_w, tl.where(tied, 1.0, 0.0)


@triton.jit
def _by_position(values, s_ptr, position, offs_hw, mask_hw):
    if s_ptr is not None:
        values *= tl.load(s_ptr + position + offs_hw, mask=mask_hw, other=0.0)[None, :]
    return values
