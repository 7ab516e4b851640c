"""CUDA streams of one's own.

Torch has 32 streams of each priority on a device and hands them out in turns, the first again after the last. What is
kept for each stream, such as cuBLAS's workspace, would be shared by two runs that got the same, and is written into
their graphs.
"""

from __future__ import annotations

from weakref import WeakSet

import torch

__all__ = ["MOST_HOLDERS", "own_stream"]

_STREAMS = 32
_PRIORITIES = (0, -1)
MOST_HOLDERS = _STREAMS * len(_PRIORITIES)
"""Streams of one device that can be held at the same time."""

_held: WeakSet[torch.cuda.Stream] = WeakSet()


def own_stream(device: torch.device | str) -> torch.cuda.Stream:
    """Return a stream that no one else in this process has from here, for as long as it is referred to.

    Raises:
        RuntimeError: All of them are held.
    """
    for priority in _PRIORITIES:
        for _ in range(_STREAMS):
            stream = torch.cuda.Stream(device, priority=priority)
            if stream not in _held:
                _held.add(stream)
                return stream
    raise RuntimeError(f"all {MOST_HOLDERS} streams of {device} are in use")
