"""The most memory that a pass holds at once, counted by the allocator."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["peak_bytes"]


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
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), number, e.nbytes()) for number, e in enumerate(events) if e.name() == "[memory]")
    held = peak = 0
    for _, _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
