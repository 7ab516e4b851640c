"""The two things that are timed: a forward pass, and a training step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PRECISIONS", "Forward", "forward_of", "inference", "static_bytes", "training", "unchanged"]

Forward = Callable[[Tensor], Tensor]
Pass = Callable[[], Any]

PRECISIONS = ("fp32", "bf16")
_NUMBERS = itertools.count()


def forward_of(
    network: nn.Module, device: torch.device, precision: str, compiled: bool, *, fullgraph: bool = False
) -> Forward:
    """Return the network as it is called at a precision, eager or compiled.

    Args:
        network: The network, on ``device``.
        device: Device that it is on.
        precision: ``"fp32"``, or ``"bf16"`` for autocast, as in training.
        compiled: True if torch.compile is used, for one shape of input.
        fullgraph: True if a graph break is an error, at the first call.
    """

    def plain(images: Tensor) -> Tensor:
        return network(images)

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(images)

    forward = plain if precision == "fp32" else autocast
    return _compile(forward, fullgraph) if compiled else forward


def _compile(forward: Forward, fullgraph: bool) -> Forward:
    # torch.compile counts recompilations and checks its guards by code object: each network gets one of its own.
    assert isinstance(forward, FunctionType)
    code = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
    own = FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=fullgraph)


@contextmanager
def inference(network: nn.Module, forward: Forward, images: Tensor) -> Iterator[Pass]:
    """Make ready for forward passes over ``images`` in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        yield lambda: forward(images)


@contextmanager
def training(network: nn.Module, forward: Forward, images: Tensor) -> Iterator[Pass]:
    """Make ready for training steps: forward pass, loss, backward pass, and SGD with momentum as csham trains.

    The learning rate is 0, so that all the arithmetic is done and the weights stay as they are. Gradients and momentum
    are gone afterwards.
    """
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    fused = images.device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(parameters, lr=0.0, fused=fused or None, **settings)
    for parameter in parameters:  # a step that finds none makes them, and takes longer
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        logits = forward(images)
        F.cross_entropy(logits.flatten(1).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        yield step
    finally:
        optimizer.zero_grad(set_to_none=True)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Put modes, buffers and gradients back into the state they had."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def static_bytes(network: nn.Module, *, momentum: bool = False) -> int:
    """Return the bytes of parameters and buffers, with a training step's momentum too."""
    parameters = {p.untyped_storage().data_ptr(): p for p in network.parameters()}.values()
    held = sum(p.nbytes * (1 + (momentum and p.requires_grad)) for p in parameters)
    return held + sum(buffer.nbytes for buffer in network.buffers())
