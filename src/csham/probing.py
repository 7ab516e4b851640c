"""Run a third-party network once to learn something about it, and leave it as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["blank_image", "eagerly", "evaluating", "is_compiled", "likeness", "uncompiled"]


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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # By train(), from above to below, which some modules do more in, such as to take a merged LoRA apart again.
        for module, training in modes:
            if module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training  # where train() does not, as of layers that are to stay frozen


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
