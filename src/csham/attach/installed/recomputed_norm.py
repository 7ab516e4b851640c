"""A batch norm's output, recomputed in the backward pass instead of kept.

An attention behind a batch norm keeps its map, which is one more than the plain network keeps: the norm itself keeps
what it was given, and the next layer what comes after. From that the map can be made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["norm_recomputed"]

# By the names of their nodes; torch chooses among them by device and type.
_NORMS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")

Kept = Tensor | Callable[[], Tensor]


def norm_recomputed(x: Tensor) -> AbstractContextManager[Any]:
    """Let what runs in this context keep, where ``x`` is a batch norm's output, not it but the way to compute it again.

    The values are the same to the bit, and so are the gradients of whatever runs. A map from elsewhere is kept, and any
    where others' hooks on saved tensors are set, such as those of activation checkpointing, which keep less; so it is
    in compiled code, and behind a norm without a bias that learns.

    Args:
        x: (B, C, H, W).
    """
    plain = type(x) is Tensor and not x.is_meta  # others have no storage to be known by
    if not plain or torch.compiler.is_compiling() or not _hooks_are_free():
        return nullcontext()
    node: Any = x.grad_fn
    if node is None or node.name() not in _NORMS:
        return nullcontext()
    # The node does not keep the bias; the edge of its gradient leads there.
    bias = getattr(node.next_functions[2][0], "variable", None)
    if bias is None:
        return nullcontext()
    output = _NormOutput(x, node, bias)
    return saved_tensors_hooks(output.pack, output.unpack)


def _hooks_are_free() -> bool:
    """Return True if hooks on saved tensors may be set, and nobody's are."""
    autograd: Any = torch._C._autograd
    return bool(autograd._saved_tensors_hooks_is_enabled()) and not autograd._top_saved_tensors_default_hooks(False)


class _NormOutput:
    """A map of which only what a batch norm made it of is kept."""

    def __init__(self, x: Tensor, node: Any, bias: Tensor) -> None:
        self._size, self._stride, self._dtype = x.size(), x.stride(), x.dtype
        self._storage, self._version = x.untyped_storage().data_ptr(), x._version
        training = node._saved_training
        # By the same function, which chooses the same kernel. The bias may change before the backward pass.
        self._compute = partial(
            F.batch_norm,
            node._saved_input,
            None if training else node._saved_running_mean,
            None if training else node._saved_running_var,
            node._saved_weight,
            bias.detach().clone(),
            training=training,
            eps=node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon,
        )
        self._users = self._waiting = 0
        self._again: Tensor | None = None

    def pack(self, tensor: Tensor) -> Kept:
        """Keep a tensor, or if it is the map, or a view of it, its place there."""
        found = (tensor.untyped_storage().data_ptr(), tensor._version, tensor.dtype)
        if found != (self._storage, self._version, self._dtype):
            return tensor
        self._users += 1
        return partial(self._view, tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(self, kept: Kept) -> Tensor:
        """Return what was kept."""
        return kept if isinstance(kept, Tensor) else kept()

    def _view(self, *place: Any) -> Tensor:
        if self._again is None:
            self._again, self._waiting = self._laid_out(), self._users
        view = self._again.as_strided(*place)
        self._waiting -= 1
        if not self._waiting:
            self._again = None
        return view

    def _laid_out(self) -> Tensor:
        with torch.no_grad():
            x = self._compute()
            if x.stride() != self._stride:
                x = x.new_empty_strided(self._size, self._stride).copy_(x)
        return x
