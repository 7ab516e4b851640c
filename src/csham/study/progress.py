"""Progress of a study while it runs: a bar for it and one for each job on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from csham.training.progress import PlainProgress, QuietProgress, speed
from csham.words import printable

__all__ = ["BarStudyProgress", "PlainStudyProgress", "StudyProgress", "create_study_progress"]


class StudyProgress(QuietProgress):
    """Says nothing, and is what engines talk to: the other two override its methods."""

    def begin(self, cells: int, done: int) -> None:
        """Begin with a study of so many cells, ``done`` of which are done."""

    def cell(self, job: int, label: str, where: str, fraction: float, images_per_s: float) -> None:
        """Tell how far the cell of a job is.

        Args:
            job: Number of the process among those that work at the same time, from 0.
            label: Of the cell.
            where: Such as ``epoch 2/30``.
            fraction: 0 to 1.
            images_per_s: 0 if unknown.
        """

    def ended(self, job: int | None, record: Mapping[str, Any]) -> None:
        """Tell that a cell is done or has failed.

        Args:
            job: Number of its job; None if another process's.
            record: Of the cell.
        """

    def idle(self, job: int) -> None:
        """Tell that a job has no cell."""


class PlainStudyProgress(PlainProgress, StudyProgress):
    """One line for each cell that ends, and one every half minute in between."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._cells, self._ended = 0, 0
        self._said: set[str] = set()

    def begin(self, cells: int, done: int) -> None:
        """Say how much there is."""
        self._cells, self._ended = cells, done

    def note(self, text: str) -> None:
        """Say one line, once."""
        if text not in self._said:
            self._said.add(text)
            super().note(text)

    def cell(self, job: int, label: str, where: str, fraction: float, images_per_s: float) -> None:
        """Say how far a cell is, if nothing was said for half a minute."""
        if self.waited_long():
            rate = f"  {speed(images_per_s)}" if images_per_s else ""
            super().note(f"{self._count()} {label}: {where}  {fraction:.0%}{rate}")

    def ended(self, job: int | None, record: Mapping[str, Any]) -> None:
        """Say what came of a cell."""
        self._ended += record["status"] == "done"
        where = "" if job is not None else " (by another process)"
        super().note(f"{self._count()} {record['label']}, seed {record['seed']}: {_came_to(record)}{where}")

    def _count(self) -> str:
        return f"[{self._ended}/{self._cells}]"


class BarStudyProgress(PlainStudyProgress):
    """One bar over all cells and one for each job below it; the cells' lines scroll by above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._study: TaskID | None = None
        self._jobs: dict[int, TaskID] = {}
        self._fractions: dict[int, float] = {}

    def begin(self, cells: int, done: int) -> None:
        """Put the bar of the study on the screen."""
        super().begin(cells, done)
        self._study = self._bars.add_task("study", total=cells, completed=done, detail="")
        self._bars.start()

    def preparing(self, done: int, total: int, what: str) -> None:
        """Move the bar of the reading."""
        self._show(-1, what, done / total if total else 0.0, "")
        if total and done >= total:
            self.idle(-1)

    def cell(self, job: int, label: str, where: str, fraction: float, images_per_s: float) -> None:
        """Move the bar of a job."""
        rate = f"{where}  {speed(images_per_s)}" if images_per_s else where
        self._show(job, label, fraction, rate)

    def ended(self, job: int | None, record: Mapping[str, Any]) -> None:
        """Say what came of a cell, and move the bar of the study."""
        super().ended(job, record)
        if job is not None:
            self.idle(job)
        self._update()

    def idle(self, job: int) -> None:
        """Take the bar of a job away."""
        self._fractions.pop(job, None)
        if job in self._jobs:
            self._bars.remove_task(self._jobs.pop(job))

    def close(self) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def _show(self, job: int, label: str, fraction: float, detail: str) -> None:
        label, detail = printable(label), printable(detail)
        if job not in self._jobs:
            self._jobs[job] = self._bars.add_task(label, total=1.0, detail=detail)
        self._fractions[job] = fraction
        self._bars.update(self._jobs[job], description=label, completed=fraction, detail=detail)
        self._update()

    def _update(self) -> None:
        if self._study is not None:
            running = sum(fraction for job, fraction in self._fractions.items() if job >= 0)
            done = f"{self._ended}/{self._cells} cells"
            self._bars.update(self._study, completed=min(self._ended + running, self._cells), detail=done)


def create_study_progress(*, quiet: bool = False, console: Console | None = None) -> StudyProgress:
    """Choose how to tell: on standard error, so that standard output is left to results."""
    console = console or Console(stderr=True)
    if quiet:
        return StudyProgress()
    return BarStudyProgress(console) if console.is_terminal else PlainStudyProgress(console)


def _came_to(record: Mapping[str, Any]) -> str:
    if record["status"] == "failed":
        error = record.get("error", {})
        return f"failed, {error.get('type', 'Error')}: {str(error.get('message', '')).splitlines()[0]}"
    result = record["result"]
    return f"top-1 {result['top1']:.2f}%, {result['seconds']:.0f} s of training"
