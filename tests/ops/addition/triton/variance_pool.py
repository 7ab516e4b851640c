"""Variance over the positions.

forward    mean[b, c] = sum_hw(x) / (H W);  variance[b, c] = sum_hw((x - mean)^2) / (H W)     reads x once
backward   dx = 2 dvariance (x - mean) / (H W)                                                reads x, writes dx once
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS, map_of, small


def variance_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Implement the operator ``variance_pool``."""
    map_ = map_of(x)
    variance, mean = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    sizes = (map_.C, map_.positions, *map_.strides)
    block = triton.next_power_of_2(map_.positions)
    variance_kernel[(map_.B * map_.C,)](x, variance, mean, *sizes, BLOCK=block, **OPTIONS)
    return variance, mean


def variance_pool_backward(x: Tensor, mean: Tensor, grad: Tensor) -> Tensor:
    """Implement the operator ``variance_pool_backward``."""
    map_ = map_of(x)
    given = (x, small(mean, map_.B * map_.C), small(grad, map_.B * map_.C))
    grad_x = torch.empty_like(x)
    sizes = (map_.C, map_.positions, *map_.strides)
    block = triton.next_power_of_2(map_.positions)
    variance_backward_kernel[(map_.B * map_.C,)](*given, grad_x, *sizes, BLOCK=block, **OPTIONS)
    return grad_x


@triton.jit
def variance_kernel(x_ptr, variance_ptr, mean_ptr, C, P, stride_c, stride_hw, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    x_ptr += (pid // C).to(tl.int64) * C * P + pid % C * stride_c
    x = tl.load(x_ptr + offs * stride_hw, mask=offs < P, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / P
    away = tl.where(offs < P, x - mean, 0.0)
    tl.store(mean_ptr + pid, mean)
    tl.store(variance_ptr + pid, tl.sum(away * away, 0) / P)


@triton.jit
def variance_backward_kernel(x_ptr, mean_ptr, grad_ptr, dx_ptr, C, P, stride_c, stride_hw, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    first = (pid // C).to(tl.int64) * C * P + pid % C * stride_c
    x = tl.load(x_ptr + first + offs * stride_hw, mask=offs < P, other=0.0).to(tl.float32)
    dx = 2 * tl.load(grad_ptr + pid) * (x - tl.load(mean_ptr + pid)) / P
    tl.store(dx_ptr + first + offs * stride_hw, dx.to(dx_ptr.dtype.element_ty), mask=offs < P)
