"""Passes that are measured, forward and training: how they are run, their seconds, and their peak of memory.

Seconds are those of blocks of calls, in an order that is drawn anew for every round.
"""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham.errors import UserError

__all__ = [
    "PRECISIONS",
    "Forward",
    "calls_for",
    "forward_of",
    "in_its_place",
    "inference",
    "orders",
    "peak_bytes",
    "seconds_per_call",
    "static_bytes",
    "training",
    "without_gradients",
]

Forward = Callable[[Tensor], Tensor]
Pass = Callable[[], Any]

PRECISIONS = ("fp32", "bf16")
_NUMBERS = itertools.count()

# Shorter blocks would be timed as much as what they hold.
_SECONDS_OF_A_BLOCK = 0.02

Item = TypeVar("Item")


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

    Raises:
        UserError: Every parameter is frozen; from a step, the network returns no tensor.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(
            "a training step needs parameters to train, and all of them are frozen. With training=False "
            "(--no-training) the rest is measured."
        )
    network.train()
    weights = [p.detach().clone() for p in parameters]  # 0 times a gradient that is not finite makes them NaN
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    fused = images.device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(parameters, lr=0.0, fused=fused or None, **settings)
    for parameter in parameters:  # a step that finds none makes them, and takes longer
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        logits = forward(images)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"a training step needs a loss, and the network returns a {type(logits).__name__}, not a tensor. With "
                "training=False (--no-training) the rest is measured."
            )
        F.cross_entropy(logits.flatten(1).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        yield step
    finally:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Take the gradients of a network away, and put them back afterwards."""
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def in_its_place(network: nn.Module) -> Iterator[None]:
    """Put parameters, buffers and gradients back on the device and into the memory format that they had."""
    tables = [(t, dict(t)) for module in network.modules() for t in (module._parameters, module._buffers)]
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    tensors = [t for pair in gradients for t in pair if t is not None]
    values = [(tensor, tensor.data) for tensor in tensors]
    try:
        yield
    finally:
        for table, before in tables:
            table.update(before)  # type: ignore[arg-type]
        for tensor, data in values:
            tensor.data = data
        for parameter, gradient in gradients:
            parameter.grad = gradient


def static_bytes(network: nn.Module, *, momentum: bool = False) -> int:
    """Return the bytes of parameters and buffers, with a training step's momentum too."""
    parameters = {p.untyped_storage().data_ptr(): p for p in network.parameters()}.values()
    held = sum(p.nbytes * (1 + (momentum and p.requires_grad)) for p in parameters)
    return held + sum(buffer.nbytes for buffer in network.buffers())


def seconds_per_call(run: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Time a block of calls, from an idle device to an idle device."""
    collecting = gc.isenabled()
    gc.disable()  # with many networks in memory one collection takes as long as a pass
    try:
        _wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        return (time.perf_counter() - started) / calls
    finally:
        if collecting:
            gc.enable()


def calls_for(seconds: float) -> int:
    """Return how many calls make a block long enough to be timed."""
    return max(1, ceil(_SECONDS_OF_A_BLOCK / max(seconds, 1e-9)))


def orders(items: Sequence[Item], seed: int) -> Iterator[list[Item]]:
    """Yield the items in one drawn order after another, without end; the same for the same seed."""
    generator = np.random.default_rng(seed)
    while True:
        yield [items[index] for index in generator.permutation(len(items))]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Run something once; return how much more than at its start its tensors held at once, in bytes.

    On CUDA what its caching allocator reports, on the CPU the running sum of what torch's allocator hands out and takes
    back, which is exact for tensors and leaves out what libraries such as oneDNN allocate by themselves.

    Args:
        run: Function to run.
        device: Device of its tensors.

    Returns:
        None on devices that keep no record (Metal); ``run`` is run there too.
    """
    if device.type == "cuda":
        return _cuda_peak(run, device)
    if device.type == "cpu":
        return _cpu_peak(run)
    run()
    return None


def _cuda_peak(run: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _cpu_peak(run: Callable[[], Any]) -> int:
    # Read when the profiler first starts, which otherwise writes several lines to standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        run()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), number, e.nbytes()) for number, e in enumerate(events) if e.name() == "[memory]")
    held = peak = 0
    for _, _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
