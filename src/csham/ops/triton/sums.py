"""Sums of what programs leave in parts, of several arrays in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS

__all__ = ["added"]

# Values that a program holds.
_VALUES = 2048


def added(*arrays: Tensor | None) -> list[Tensor | None]:
    """Add up the parts of up to three arrays of float32, each (parts, ...), in an order that the shape decides.

    What is None stays so, and what has one part is returned without it.
    """
    most = max([1, *(len(one) for one in arrays if one is not None)])
    tall = min(triton.next_power_of_2(most), 128)
    block = _VALUES // tall
    sums: list[Tensor | None] = []
    given: list[Tensor | int | None] = []
    programs = 0
    for parts in arrays:
        if parts is None or len(parts) == 1:
            sums.append(None if parts is None else parts[0])
        elif parts.numel() == 0:
            sums.append(parts.new_zeros(parts.shape[1:]))
        else:
            total = parts.new_empty(parts.shape[1:])
            sums.append(total)
            given += [parts, total, len(parts), total.numel()]
            programs += triton.cdiv(total.numel(), block)
    if programs:
        given += [None, None, 0, 0] * (3 - len(given) // 4)
        added_kernel[(programs,)](*given, PARTS=tall, BLOCK=block, **OPTIONS)
    return sums


@triton.jit
def _add(parts_ptr, total_ptr, parts, count, block, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    offs = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        place = part[:, None].to(tl.int64) * count + offs[None, :]
        total += tl.load(parts_ptr + place, mask=(part < parts)[:, None] & mask[None, :], other=0.0)
    tl.store(total_ptr + offs, tl.sum(total, 0), mask=mask)


@triton.jit
def added_kernel(
    parts_ptr,
    total_ptr,
    parts,
    count,
    parts_2_ptr,
    total_2_ptr,
    parts_2,
    count_2,
    parts_3_ptr,
    total_3_ptr,
    parts_3,
    count_3,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks, blocks_2 = tl.cdiv(count, BLOCK), tl.cdiv(count_2, BLOCK)
    if pid < blocks:
        _add(parts_ptr, total_ptr, parts, count, pid, PARTS, BLOCK)
    if parts_2_ptr is not None:  # noqa: SIM102  known when it is compiled
        if (pid >= blocks) & (pid < blocks + blocks_2):
            _add(parts_2_ptr, total_2_ptr, parts_2, count_2, pid - blocks, PARTS, BLOCK)
    if parts_3_ptr is not None:  # noqa: SIM102
        if pid >= blocks + blocks_2:
            _add(parts_3_ptr, total_3_ptr, parts_3, count_3, pid - blocks - blocks_2, PARTS, BLOCK)
