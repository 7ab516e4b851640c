"""Ties the functions of this package to the operators ``torch.ops.csham_triton``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import triton
from torch import Tensor

from csham.errors import UserError
from csham.ops.operators import OPERATORS
from csham.ops.triton.running import follow
from csham.ops.triton.scale import scale_kernel

__all__ = ["IMPLEMENTATIONS", "interpreted"]

# By the operator's name; each in the file of that name, beside its backward pass.
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"follow": follow} | {
    name: getattr(import_module(f"csham.ops.triton.{operator}"), name)
    for operator in OPERATORS
    for name in (operator, f"{operator}_backward")
}


def interpreted() -> bool:
    """Return True if the kernels run in Triton's interpreter, which takes tensors on the CPU too."""
    return not isinstance(scale_kernel, triton.JITFunction)


def _on_device(operator: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operator)
    def run(*args: Any) -> Any:
        tensors = args[0] if isinstance(args[0], list) else args
        device = next(arg.device for arg in tensors if isinstance(arg, Tensor))
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


for _name, _implementation in IMPLEMENTATIONS.items():
    torch.library.impl(f"csham_triton::{_name}", ("cuda", "cpu"), _on_device(_implementation))
