"""Run a third-party network once to learn something about it, and leave it as it was."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["blank_image", "eagerly", "evaluating", "is_compiled", "likeness", "unchanged", "uncompiled"]

_CONTAINERS = (dict, OrderedDict, list, set)


def blank_image(model: nn.Module, size: Sequence[int]) -> Tensor:
    """Make a batch of one image, (1, C, H, W), of zeros, on the device and of the type of the model's weights.

    Args:
        model: The network that will see it.
        size: (C, H, W).
    """
    like = likeness(model)
    return torch.zeros(1, *size, device=like.device, dtype=like.dtype)


def likeness(model: nn.Module) -> Tensor:
    """Return a tensor on the device and of the type of a network's weights."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and every module back into its own mode afterwards."""
    with _same_modes(model):
        model.eval()
        with torch.no_grad():
            yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a network back into the state it had: modes, weights, buffers, and whatever else its modules remember.

    Observers, counters, data-dependent initialisation and layers that merge their weights change in evaluation too. Of
    every tensor a copy is held meanwhile. What a lazy module makes of itself at its first run stays.
    """
    # Not of DDP itself, which keeps in step with what it has in C++.
    modules = [module for module in uncompiled(model).modules() if not _is_lazy(module)]
    attributes = [(vars(module), vars(module).copy()) for module in modules]
    containers = [(v, v.copy()) for _, known in attributes for v in known.values() if type(v) in _CONTAINERS]
    tensors = [_Tensor(tensor) for tensor in _tensors_of(modules, [held for _, held in [*attributes, *containers]])]
    try:
        with _same_modes(model):  # first, since a module that is told of its mode may change its weights
            yield
    finally:
        for now, before in attributes:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for container, held in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(held)
        for tensor in tensors:
            tensor.put_back()


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # By train(), from above to below, which some modules do more in, such as to take a merged LoRA apart again.
        for module, training in modes:
            if module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training  # where train() does not, as of layers that are to stay frozen


def _is_lazy(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)


def _tensors_of(modules: Sequence[nn.Module], holders: Sequence[Any]) -> list[Tensor]:
    """List parameters, buffers and what else attributes hold, each tensor that has memory of its own once."""
    found = [t for module in modules for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]]
    for holder in holders:
        values = holder.values() if isinstance(holder, dict) else holder
        found += [value for value in values if isinstance(value, Tensor)]
    return list({id(tensor): tensor for tensor in found if _has_memory(tensor)}.values())


def _has_memory(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and not tensor.is_meta and not nn.parameter.is_lazy(tensor)
    return strided and not is_traceable_wrapper_subclass(tensor)


class _Tensor:
    """A tensor, and the place and the values it had."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.place = tensor.data  # shares memory, and keeps its shape when the tensor is resized
        self.values = self.place.clone()

    def put_back(self) -> None:
        """Give the tensor back its place and, where they changed, its values."""
        now = self.tensor
        if (now.data_ptr(), now.shape, now.stride()) != (self.place.data_ptr(), self.place.shape, self.place.stride()):
            now.data = self.place
        if not torch.equal(self.place, self.values):
            self.place.copy_(self.values)  # by .data: no graph of the caller's is to see a change


def eagerly() -> Any:
    """Return a context in which compiled networks run without their compiled code."""
    # Only a compiled network has imported the compiler, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo.eval_frame" in sys.modules else nullcontext()


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the network that torch.compile or DDP was given."""
    while _is_wrapper(model):
        model = getattr(model, "_orig_mod", None) or model.module  # type: ignore[assignment]
    return model


def is_compiled(module: nn.Module) -> bool:
    """Return True if torch.compile was given a module, to wrap or in place."""
    return _is_compilers(module) or module._compiled_call_impl is not None


def _is_wrapper(model: nn.Module) -> bool:
    return _is_compilers(model) or isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)


def _is_compilers(module: nn.Module) -> bool:
    # Looked up among what is imported: a compiled network has imported the compiler, which takes seconds.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)
