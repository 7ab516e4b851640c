"""Functions that kernels over quads share: 4 columns of each row at a time, and the taps of the neighbour term.

A quad is 4 rows x 4 columns (or 1 x 4 where there is no neighbour term): 2 x 2 cells of the 2 x 2 average pooling.
Under the 3 x 3 convolution with stride 2, each row of cells of quad ``i`` meets output row ``i`` ("self") with one tap,
and one of the two also meets an adjacent output row ("side") with the third; columns likewise. With ``ODD`` = 1 where
the pooled side is odd (padded at both ends), and tap groups 0, 1 = the two cells' self, 2 = side:

    group          0            1            2
    cell           0            1            ODD
    tap            ODD          1 + ODD      2 - 2 ODD
    output row     i            i            i + 2 ODD - 1

So 9 multiply-adds a channel serve 16 positions, and one quad takes part in 2 x 2 output values.
"""

import triton
import triton.language as tl

__all__ = ["cell", "cell_sums", "load_columns", "neighbor_gradients", "quad_corner", "store_columns", "tap"]

# Triton 3.4 has it in its language.
constexpr_function = getattr(triton, "constexpr_function", None) or tl.constexpr_function


@constexpr_function
def tap(group, odd):
    """Tap of a group."""
    return group + odd if group < 2 else 2 - 2 * odd


@constexpr_function
def cell(group, odd):
    """Cell of a group."""
    return group if group < 2 else odd


@triton.jit
def quad_corner(offs_q, W, ROWS: tl.constexpr):
    """First row and column of quads."""
    quads_w = tl.cdiv(W, 4)
    return offs_q // quads_w * ROWS, offs_q % quads_w * 4


@triton.jit
def load_columns(ptr, offs, mask, col, W, stride_hw, CHANNELS_LAST: tl.constexpr):
    """Load 4 columns, each (rows of ``offs``, BLOCK_Q), float32, zero past the map.

    ``offs`` are those of the first column. Where columns are adjacent, each thread reads 4 at once.
    """
    if CHANNELS_LAST:
        x0 = tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32)
        x1 = tl.load(ptr + offs + stride_hw, mask=mask & (col + 1 < W)[None, :], other=0.0).to(tl.float32)
        x2 = tl.load(ptr + offs + 2 * stride_hw, mask=mask & (col + 2 < W)[None, :], other=0.0).to(tl.float32)
        x3 = tl.load(ptr + offs + 3 * stride_hw, mask=mask & (col + 3 < W)[None, :], other=0.0).to(tl.float32)
    else:
        offs_w = tl.arange(0, 4)[None, None, :]
        mask_w = mask[:, :, None] & (col[None, :, None] + offs_w < W)
        x = tl.load(ptr + offs[:, :, None] + offs_w, mask=mask_w, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def store_columns(ptr, offs, values, mask, col, W, stride_hw, CHANNELS_LAST: tl.constexpr):
    """Store 4 columns, as :func:`load_columns` loads them, rounded to the type of the array."""
    type_ = ptr.dtype.element_ty
    if CHANNELS_LAST:
        for o in tl.static_range(4):
            tl.store(ptr + offs + o * stride_hw, values[o].to(type_), mask=mask & (col + o < W)[None, :])
    else:
        offs_w = tl.arange(0, 4)[None, None, :]
        mask_w = mask[:, :, None] & (col[None, :, None] + offs_w < W)
        joined = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
        x = tl.reshape(joined, [joined.shape[0], joined.shape[1], 4])
        tl.store(ptr + offs[:, :, None] + offs_w, x.to(type_), mask=mask_w)


@triton.jit
def cell_sums(left, right, row, col, H, W, R: tl.constexpr):
    """Zero the sums of two cells that the pooling drops: ``row`` is the quad's first, ``row + R`` the cell's last."""
    kept = row + R < H // 2 * 2
    pooled_w = W // 2 * 2
    left = tl.where((kept & (col + 1 < pooled_w))[None, :], left, 0.0)
    right = tl.where((kept & (col + 3 < pooled_w))[None, :], right, 0.0)
    return left, right


@triton.jit
def neighbor_gradients(ptr, row, col, H, W, mask_q, ODD_H: tl.constexpr, ODD_W: tl.constexpr):
    """Load the gradients of the output values that quads take part in, over 4 (a cell is an average).

    (BLOCK_Q) each, zero where there is no such value, in the order (row, column) = (self, self), (self, side),
    (side, self), (side, side).
    """
    coarse_h, coarse_w = (H // 2 + 1) // 2, (W // 2 + 1) // 2
    grads = ()
    for side_h in tl.static_range(2):
        for side_w in tl.static_range(2):
            i = row // 4 + side_h * (2 * ODD_H - 1)
            j = col // 4 + side_w * (2 * ODD_W - 1)
            mask = mask_q & (i >= 0) & (i < coarse_h) & (j >= 0) & (j < coarse_w)
            grads = grads + (0.25 * tl.load(ptr + i * coarse_w + j, mask=mask, other=0.0),)
    return grads
