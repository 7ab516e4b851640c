"""Engines: what runs the cells of a study, on one machine (:mod:`~csham.study.engines.local`) or on many.

An engine is a function that takes a store and the tasks to do, and returns an :class:`Outcome` when each of them is
done, failed, or left to others. Records are appended by the process that ran the cell, so that a killed engine loses
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csham.study.grid import Cell, Study
from csham.study.progress import StudyProgress
from csham.study.record import failed_record
from csham.study.store import Store

__all__ = ["Engine", "Outcome", "Task", "plan_tasks", "record_death"]


@dataclass(frozen=True)
class Task:
    """One cell to be done.

    Attributes:
        cell: The cell.
        attempts: Number of its attempts that have failed before.
    """

    cell: Cell
    attempts: int = 0


@dataclass(frozen=True)
class Outcome:
    """End of an engine's work.

    Attributes:
        signum: The signal that stopped it early; None if nothing did.
    """

    signum: int | None = None


Engine = Callable[[Store, Sequence[Task], Mapping[str, Any], StudyProgress], Outcome]
"""Takes store, tasks, machine settings (:data:`csham.study.grid.MACHINE_FIELDS`) and the progress to tell."""


def plan_tasks(
    study: Study,
    records: Mapping[str, Mapping[str, Any]],
    *,
    retry_failed: bool = False,
    shard: tuple[int, int] = (1, 1),
) -> list[Task]:
    """Choose the cells that a call has to do.

    Args:
        study: The study.
        records: Known records, by the keys of cells.
        retry_failed: True if failed cells are tried again.
        shard: (i, n): every n-th cell of the study, from number i on, counted from 1.
    """
    tasks = []
    for cell in study.part(shard):
        record = records.get(cell.key)
        if record is None:
            tasks.append(Task(cell))
        elif retry_failed and record["status"] != "done":
            tasks.append(Task(cell, int(record.get("attempts", 1))))
    return tasks


def record_death(store: Store, task: Task, error: Mapping[str, str], started: str) -> dict[str, Any] | None:
    """Write down that a cell failed, which its process cannot.

    Args:
        store: The study's folder.
        task: Task that the process worked on.
        error: ``type``, ``message`` and ``traceback``.
        started: Time of the start, as :func:`csham.study.record.now` says it.

    Returns:
        The record; None where another process has the cell.
    """
    claim = store.claim(task.cell.key, task.attempts)
    if claim is None:
        return None
    with claim:
        run, attempts = f"runs/{task.cell.name}", task.attempts + 1
        record = failed_record(store.study, task.cell, error, run=run, started=started, attempts=attempts)
        store.append(record)
        store.mark_failed(task.cell, error)
    return record
