"""From what was timed and counted to the rows of a comparison."""

from __future__ import annotations

from collections.abc import Mapping

from csham.cost.result import Cost, Spread
from csham.cost.task import Entry, Task, Way

__all__ = ["summarise"]

Tasks = Mapping[str, Task | None]


def summarise(
    entry: Entry,
    first: Entry,
    way: Way,
    batch_size: int,
    device: str,
    input_size: tuple[int, int, int],
) -> Cost:
    """Make the row of one network at one way of running it.

    Args:
        entry: The network.
        first: The one that ratios are against.
        way: Precision, and whether compiled.
        batch_size: Of throughput, training and memory.
        device: Device it ran on.
        input_size: (C, H, W) of an image.
    """
    tasks, plain = _tasks(entry, way, batch_size), _tasks(first, way, batch_size)
    known, reference = _numbers(entry, tasks), _numbers(first, plain)
    params, before = known["params"], reference["params"]
    times = {name: task.samples if task else [] for name, task in tasks.items()}
    reasons = dict.fromkeys(task.failed for task in tasks.values() if task and task.failed)
    return Cost(
        name=entry.name,
        batch_size=batch_size,
        precision=way[0],
        compiled=way[1],
        device=device,
        input_size=input_size,
        params=entry.params,
        params_extra=None if params is None or before is None else int(params - before),
        flops=entry.flops.total if entry.flops else None,
        flops_matmul=entry.flops.matmul if entry.flops else None,
        flops_uncounted=entry.flops.uncounted if entry.flops else (),
        latency_ms=Spread.of([1000 * seconds for seconds in times["latency"]]),
        images_per_s=Spread.of([batch_size / seconds for seconds in times["inference"]]),
        train_step_ms=Spread.of([1000 * seconds for seconds in times["train_step"]]),
        peak_mib=known["peak"],
        train_peak_mib=known["train_peak"],
        ratios=_ratios(known, reference) | _time_ratios(tasks, plain),
        rounds=max(map(len, times.values())),
        failed=entry.failed or "; ".join(reasons),
    )


def _tasks(entry: Entry, way: Way, batch_size: int) -> Tasks:
    return {
        "latency": entry.tasks.get((way, "inference", 1)),
        "inference": entry.tasks.get((way, "inference", batch_size)),
        "train_step": entry.tasks.get((way, "training", batch_size)),
    }


def _numbers(entry: Entry, tasks: Tasks) -> dict[str, float | None]:
    return {
        "params": entry.params,
        "flops": entry.flops.total if entry.flops else None,
        "flops_matmul": entry.flops.matmul if entry.flops else None,
        "peak": _mib(tasks["inference"]),
        "train_peak": _mib(tasks["train_step"]),
    }


def _mib(task: Task | None) -> float | None:
    return None if task is None or task.peak is None else task.peak / 2**20


def _ratios(known: Mapping[str, float | None], reference: Mapping[str, float | None]) -> dict[str, float]:
    pairs = ((name, known[name], reference[name]) for name in known)
    return {name: mine / its for name, mine, its in pairs if mine is not None and its}


def _time_ratios(tasks: Tasks, plain: Tasks) -> dict[str, float]:
    """Compare within each round, where both met the same state of the machine."""
    found = {}
    for name, task in tasks.items():
        against = plain[name]
        if task and against:
            # An interrupted round has timed some tasks and not others.
            spread = Spread.of([a / b for a, b in zip(task.samples, against.samples, strict=False)])
            if spread is not None:
                found[name] = spread.median
    return found
