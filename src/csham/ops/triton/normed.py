"""A map that is given as a batch norm's input: ``x = scale u + shift``, made where a kernel loads it.

See :mod:`csham.ops.operators.normed`. The multiply-add is a fused one in every kernel, and its result is rounded to the
type of the map: a maximum is found again by comparing. Beyond the map ``u`` is loaded as zero, but ``x`` is the shift.
"""

import triton
import triton.language as tl

__all__ = ["load_affine", "normed", "normed_columns"]


@triton.jit
def load_affine(affine_ptr, offs_c, mask_c, C):
    """Load scales and shifts of channels, (channels, 1), zero past the map."""
    scale = tl.load(affine_ptr + offs_c, mask=mask_c, other=0.0)
    shift = tl.load(affine_ptr + C + offs_c, mask=mask_c, other=0.0)
    return scale[:, None], shift[:, None]


@triton.jit
def normed(u, scale, shift, type_: tl.constexpr):
    """Make ``x``, float32, of ``u``."""
    return tl.fma(u, scale, shift).to(type_).to(tl.float32)


@triton.jit
def normed_columns(u, scale, shift, type_: tl.constexpr):
    """Do so with 4 columns, as ``load_columns`` loads them."""
    x = ()
    for o in tl.static_range(4):
        x = x + (normed(u[o], scale, shift, type_),)
    return x
