"""Finds what a batch norm made a map of, for kernels to read in compiled code instead of the norm's output.

A compiler leaves out what nobody reads. Where the kernels read the norm's input, its output is neither computed nor
kept for the backward pass. In eager code it is there already (:mod:`csham.attach.installed.recomputed_norm`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csham import ops
from csham.ops.tracing import exporting

__all__ = ["norm_source"]


def norm_source(module: nn.Module, given: Any, x: Tensor) -> ops.Source | None:
    """Return what kernels can read instead of ``x``, None where they must read that.

    Args:
        module: The module that put ``x`` out.
        given: What it was given.
        x: (B, C, H, W).
    """
    if not torch.compiler.is_compiling() or exporting() or not _is_norm_alone(module) or not isinstance(given, Tensor):
        return None
    if given.shape != x.shape or given.dtype != x.dtype:
        return None
    return ops.source_of(module, given, x)


def _is_norm_alone(module: Any) -> bool:
    """Return True if torch's batch norm, and nothing else, happens in a module's forward."""
    from timm.layers import BatchNormAct2d  # noqa: PLC0415  only compiled code waits for timm

    if "forward" in module.__dict__:
        return False
    if isinstance(module, BatchNormAct2d):
        after = (module.drop, module.act)
        return type(module).forward is BatchNormAct2d.forward and all(type(one) is nn.Identity for one in after)
    return isinstance(module, nn.BatchNorm2d) and type(module).forward is nn.BatchNorm2d.forward
