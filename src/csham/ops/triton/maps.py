"""Checks of the arrays that operators take, and the cutting of a map into blocks.

Blocks follow from shapes alone, never from a measurement or the machine, so that a result depends on its input only.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from csham.errors import UserError

__all__ = ["OPTIONS", "Blocks", "Map", "Quads", "like", "map_of", "small"]

# Said, because Triton's default is about to change. A fused multiply-add feeds sums here, never a comparison.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True, "num_warps": 4}
# Programs that keep a large GPU busy.
_PROGRAMS = 1024
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Map(NamedTuple):
    """Shape and layout of a feature map."""

    B: int
    C: int
    H: int
    W: int
    channels_last: bool

    @property
    def positions(self) -> int:
        """H W."""
        return self.H * self.W

    @property
    def strides(self) -> tuple[int, int]:
        """Distances in memory of neighbours among the channels and among the positions."""
        return (1, self.C) if self.channels_last else (self.positions, 1)


def map_of(x: Tensor) -> Map:
    """Describe ``x``.

    Raises:
        UserError: ``x`` is not a map that the kernels take.
    """
    if x.dim() != 4 or x.dtype not in _TYPES:
        raise UserError(
            f"the Triton kernels take feature maps (B, C, H, W) of float32, bfloat16 or float16, got "
            f"{tuple(x.shape)} of {x.dtype}."
        )
    contiguous = x.is_contiguous()
    if not contiguous and not x.is_contiguous(memory_format=torch.channels_last):
        raise UserError(f"the Triton kernels take maps that are contiguous or channels_last, got strides {x.stride()}.")
    B, C, H, W = x.shape
    if C * H * W >= 2**31:  # offsets within an image are 32 bits wide
        raise UserError(f"the Triton kernels take images of fewer than 2**31 values, got (C, H, W) = {(C, H, W)}.")
    return Map(B, C, H, W, not contiguous)


def like(other: Tensor | None, x: Tensor) -> Tensor | None:
    """Give a map the memory format of ``x``; eager code hands in nothing else, but a compiler may lay maps otherwise.

    Raises:
        UserError: It has not the shape and type of ``x``.
    """
    if other is None:
        return None
    if other.shape != x.shape or other.dtype != x.dtype:
        raise UserError(
            f"expected a map of the shape and type of x, {tuple(x.shape)} of {x.dtype}, got {tuple(other.shape)} of "
            f"{other.dtype}."
        )
    return other.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def small(other: Tensor | None, numel: int) -> Tensor | None:
    """Lay an array of ``numel`` float32 values as the kernels read it.

    Raises:
        UserError: It is none.
    """
    if other is None:
        return None
    if other.numel() != numel or other.dtype != torch.float32:
        raise UserError(f"expected {numel} values of float32, got {tuple(other.shape)} of {other.dtype}.")
    return other.contiguous()


class Blocks(NamedTuple):
    """Tiles of channels x positions, and into how many chunks the loop over one of the two is cut."""

    block_c: int
    block_hw: int
    chunk: int
    chunks: int

    @classmethod
    def of(cls, map_: Map, values: int, fast: int, *, loop: str = "") -> Blocks:
        """Cut a map into tiles of up to ``values``, of which up to ``fast`` lie side by side in memory.

        ``loop`` names what a program walks through: ``"c"`` or ``"hw"``.
        """
        sides = (map_.C, map_.positions) if map_.channels_last else (map_.positions, map_.C)
        inner = min(triton.next_power_of_2(sides[0]), fast)
        outer = min(triton.next_power_of_2(sides[1]), values // inner)
        block_c, block_hw = (inner, outer) if map_.channels_last else (outer, inner)
        if not loop:
            return cls(block_c, block_hw, 0, 1)
        if loop == "c":
            blocks, length, block = triton.cdiv(map_.positions, block_hw), map_.C, block_c
        else:
            blocks, length, block = triton.cdiv(map_.C, block_c), map_.positions, block_hw
        return cls(block_c, block_hw, *chunks_of(length, block, map_.B * blocks))


class Quads(NamedTuple):
    """A map as blocks of 4 columns by 1 or 4 rows, and tiles of channels x such quads.

    Four rows and columns are what one value of the neighbour term is made of: 2 x 2 averages under stride 2. Where
    there is no neighbour term, the positions are one long row.
    """

    rows: int
    H: int
    W: int
    block_c: int
    block_q: int
    chunk: int
    chunks: int

    @classmethod
    def of(cls, map_: Map, neighbors: bool, values: int, *, loop: str) -> Quads:
        """Cut a map into tiles of ``values`` channels x quads; a program walks through ``loop``, ``"c"`` or ``"q"``."""
        rows, H, W = (4, map_.H, map_.W) if neighbors else (1, 1, map_.positions)
        count = triton.cdiv(H, rows) * triton.cdiv(W, 4)
        if map_.channels_last:
            block_c = min(triton.next_power_of_2(map_.C), 128)
            block_q = min(triton.next_power_of_2(count), values // block_c)
        else:
            block_q = min(triton.next_power_of_2(count), 32)
            block_c = min(triton.next_power_of_2(map_.C), values // block_q)
        if loop == "c":
            cut = chunks_of(map_.C, block_c, map_.B * triton.cdiv(count, block_q))
        else:
            cut = chunks_of(count, block_q, map_.B * triton.cdiv(map_.C, block_c))
        return cls(rows, H, W, block_c, block_q, *cut)

    @property
    def per_image(self) -> int:
        """Quads of one image."""
        return triton.cdiv(self.H, self.rows) * triton.cdiv(self.W, 4)

    def arguments(self, map_: Map) -> dict[str, Any]:
        """Return the arguments that the kernels need for this cut."""
        unit = gcd(self.W, 4)
        return {
            "C": map_.C,
            "H": self.H,
            "W_UNITS": self.W // unit,
            "UNIT": unit,
            "ROWS": self.rows,
            "ODD_H": self.H // 2 % 2,
            "ODD_W": self.W // 2 % 2,
            "CHANNELS_LAST": map_.channels_last,
            "BLOCK_C": self.block_c,
            "BLOCK_Q": self.block_q,
        }


def chunks_of(length: int, block: int, programs: int) -> tuple[int, int]:
    """Cut a loop into chunks, so that there are enough programs: length (a multiple of ``block``) and number."""
    steps = triton.cdiv(length, block)
    wanted = min(steps, triton.cdiv(_PROGRAMS, max(1, programs)))
    chunk = triton.cdiv(steps, wanted) * block
    return chunk, triton.cdiv(length, chunk)
