"""Ties the functions of this package to the operators ``torch.ops.csham_triton``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from csham.errors import UserError
from csham.ops.triton.channel_pool import channel_pool, channel_pool_backward
from csham.ops.triton.hybrid_pool import hybrid_pool, hybrid_pool_backward
from csham.ops.triton.position_pool import position_pool, position_pool_backward
from csham.ops.triton.running import follow
from csham.ops.triton.scale import scale, scale_backward, scale_kernel
from csham.ops.triton.spatial_gate import spatial_gate, spatial_gate_backward

__all__ = ["interpreted"]

_OPERATORS = (
    channel_pool,
    channel_pool_backward,
    position_pool,
    position_pool_backward,
    hybrid_pool,
    hybrid_pool_backward,
    scale,
    scale_backward,
    spatial_gate,
    spatial_gate_backward,
    follow,
)


def interpreted() -> bool:
    """Return True if the kernels run in Triton's interpreter, which takes tensors on the CPU too."""
    return not isinstance(scale_kernel, triton.JITFunction)


def _on_device(operator: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operator)
    def run(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.type == "cuda":
            with torch.cuda.device(device):  # Triton launches on the current device, whatever the tensors'
                return operator(*args)
        if not interpreted():
            raise UserError(
                f"the Triton kernels need tensors on a GPU, got {device.type!r}. On a CPU they run only in Triton's "
                "interpreter, for tests: set TRITON_INTERPRET=1 before anything imports triton."
            )
        return operator(*args)

    return run


for _operator in _OPERATORS:
    torch.library.impl(f"csham_triton::{_operator.__name__}", ("cuda", "cpu"), _on_device(_operator))
