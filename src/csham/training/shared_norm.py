"""Batch norms over the batch of all processes, so that a run on many is the run that one process would do.

torch's ``SyncBatchNorm.convert_sync_batchnorm`` puts new modules in the place of the old ones, which loses their hooks
and the activation in timm's ``BatchNormAct2d``, and the result refuses tensors on the CPU. Here a norm stays the same
object, hooks, parameters and buffers included, and gets a subclass of its class.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csham import ops
from csham.attach.installed.host_class import plain_class
from csham.layers.norm import BatchNorm2d
from csham.module_class import change_class

__all__ = ["share_batch_norms"]


def share_batch_norms(network: nn.Module, device: torch.device) -> list[str]:
    """Let a network's batch norms take their statistics over all processes, in place.

    Every process must have as many values a channel as the others, as equal slices of a batch give them.

    Args:
        network: Before it is wrapped in DDP or compiled; attention may be attached.
        device: Device it will run on: on CUDA torch's own ``SyncBatchNorm`` computes, but for attention's norms.

    Returns:
        Names of the norms that stay as they are, being of a class whose forward is not known.
    """
    left = []
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
            continue
        kind = plain_class(module)
        if _is_known(kind):
            # torch's keeps running statistics as torch's batch norm does, and attention's norms do otherwise.
            change_class(module, _shared_class(kind, device.type != "cuda" or kind is BatchNorm2d))
        else:
            left.append(name)
    return left


def _is_known(kind: type[nn.Module]) -> bool:
    return kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm2d) or _has_activation(kind)


def _has_activation(kind: type[nn.Module]) -> bool:
    """Return True if this class is timm's batch norm with an activation; a network without timm need not import it."""
    timm_layers = sys.modules.get("timm.layers")
    accelerated = kind.__module__ == "csham.layers.accelerated"
    return timm_layers is not None and (kind is timm_layers.BatchNormAct2d or accelerated)


@cache
def _shared_class(kind: Any, in_operations: bool) -> Any:
    bases = (_Activated,) if _has_activation(kind) else ()
    return type(f"Shared{kind.__name__}", (*bases, _InOperations if in_operations else _OnCuda, kind), {})


class _OnCuda(nn.SyncBatchNorm):
    """torch's, for a module that began as another class."""

    is_plain_batch_norm = False  # kernels that take a norm in would compute it over one process
    process_group = None


class _InOperations(_BatchNorm):
    """Computation of ``SyncBatchNorm``, in plain operations."""

    is_plain_batch_norm = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return _BatchNorm.forward(self, x)
        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.ndim)]
        # In two passes: the difference of mean squares and squared means would lose its digits.
        mean = _mean_over_processes(values.mean(dims, keepdim=True))
        var = _mean_over_processes((values - mean).square().mean(dims, keepdim=True))
        if self.track_running_stats:
            count = dist.get_world_size() * x.numel() // x.shape[1]
            ops.follow(self, mean.detach().flatten(), var.detach().flatten() * (count / (count - 1)))
        y = (values - mean) * torch.rsqrt(var + self.eps)
        if self.affine:
            shape = [1, -1] + [1] * (x.ndim - 2)
            y = y * self.weight.to(y).view(shape) + self.bias.to(y).view(shape)
        return y.to(x.dtype)


class _Activated(nn.Module):
    """Activation that follows the norm in timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


class _MeanOverProcesses(torch.autograd.Function):
    """Mean over the processes; its gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return _mean(grad)


def _mean_over_processes(x: Tensor) -> Tensor:
    y: Tensor = _MeanOverProcesses.apply(x)
    return y


def _mean(x: Tensor) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
