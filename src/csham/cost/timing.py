"""Milliseconds of a pass: blocks of calls, in an order that is drawn anew for every round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["calls_for", "orders", "seconds_per_call"]

# Shorter blocks would be timed as much as what they hold.
_SECONDS_OF_A_BLOCK = 0.02

Item = TypeVar("Item")


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
