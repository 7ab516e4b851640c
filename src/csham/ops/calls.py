"""Modules that can be computed without being called, and those that cannot, because their calls do more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

__all__ = ["filter_of", "has_hooks", "is_bare"]


def has_hooks(module: Any) -> bool:
    """Return True if hooks, or a ``forward`` of its own, hang on a module's calls: it must then be called as one."""
    # Not bool(...), which the older torch.compile cannot make of a dictionary of hooks.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return "forward" in module.__dict__


def is_bare(module: Any, *kinds: type[nn.Module]) -> bool:
    """Return True if a call of a module is that of one of ``kinds`` and nothing else."""
    return type(module) in kinds and not has_hooks(module)


def filter_of(conv: Any) -> tuple[Tensor | nn.Module, Tensor | None]:
    """Return the filter and the bias of a convolution; itself and None where a call of it does more than convolve.

    Pruning and the older norms of weights compute the filter in a hook, before each call.
    """
    known = type(conv) in _CONVOLUTIONS or type_before_parametrizations(conv) in _CONVOLUTIONS
    return (conv, None) if has_hooks(conv) or not known else (conv.weight, conv.bias)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
