"""Reductions over one side of a tile, and over the parts that programs leave."""

import triton
import triton.language as tl

__all__ = ["collect", "maximum", "maximum_over"]


@triton.jit
def maximum(a, b):
    """Return the larger, or NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum_over(values, AXIS: tl.constexpr):
    """Reduce to the maximum, or NaN if any is (which ``tl.max`` passes over)."""
    spoilt = tl.max((values != values).to(tl.int32), AXIS)
    return tl.where(spoilt > 0, float("nan"), tl.max(values, AXIS))


@triton.jit
def collect(parts_ptr, offs, mask, count, stride):
    """Add up ``count`` parts, ``stride`` apart, in their order."""
    total = tl.load(parts_ptr + offs, mask=mask, other=0.0)
    for _ in range(1, count):
        parts_ptr += stride
        total += tl.load(parts_ptr + offs, mask=mask, other=0.0)
    return total
