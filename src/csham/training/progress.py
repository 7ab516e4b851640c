"""Progress of a run while it works: a bar on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from csham.words import printable

if TYPE_CHECKING:  # callers that want no bar, such as csham.load, need no Rich
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["BarProgress", "PlainProgress", "QuietProgress", "create_progress", "speed"]

_SECONDS_BETWEEN_LINES = 30.0


class QuietProgress:
    """Says nothing, and is what the loop talks to: the other two override its methods."""

    def note(self, text: str) -> None:
        """Say one line."""

    def start(self, done: int, total: int) -> None:
        """Begin with ``total`` images (0: not known), ``done`` of which an earlier process has done."""

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        """Tell that ``done`` images of all are done: trained on, or asked about, which has no loss."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Tell the row of metrics.csv that an epoch just got."""

    def preparing(self, done: int, total: int, what: str) -> None:
        """Tell how far the reading of a dataset is."""

    def need(self, seconds: float) -> None:
        """Tell how long the run would take to stop and save."""

    def close(self) -> None:
        """Take the bar off the screen."""


class PlainProgress(QuietProgress):
    """One line per epoch, and one every half minute in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = 1
        self._last_line = time.monotonic()

    def note(self, text: str) -> None:
        """Say one line."""
        self.console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def start(self, done: int, total: int) -> None:
        """Remember the length of the run."""
        self._total = total

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        """Say how far the run is, if nothing was said for half a minute."""
        if self.waited_long():
            parts = [where]
            if self._total:
                parts.append(f"{done / self._total:.0%}")
            if loss is not None:
                parts.append(f"loss {loss:.3f}")
            parts.append(speed(images_per_s))
            if self._total:
                parts.append(f"{_duration((self._total - done) / images_per_s) if images_per_s else '?'} left")
            self.note("  ".join(parts))

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Say the epoch's numbers."""
        parts = [
            f"epoch {row['epoch']}/{epochs}",
            f"loss {row['train_loss']:.3f}",
            f"top-1 {row['train_top1']:.1f}",
        ]
        if row.get("val_top1") is not None:
            parts.append(f"validation loss {row['val_loss']:.3f} top-1 {row['val_top1']:.1f}")
        parts += [f"lr {row['lr']:.2g}", speed(row["images_per_s"]), f"{row['seconds']:.0f} s"]
        self.note("  ".join(parts))

    def preparing(self, done: int, total: int, what: str) -> None:
        """Say how far the reading is, if nothing was said for half a minute."""
        if self.waited_long():
            self.note(f"{what} {done}/{total}" if total else what)

    def waited_long(self) -> bool:
        """Return True if nothing was said for half a minute."""
        return time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES


class BarProgress(PlainProgress):
    """One bar over the whole run, with images/s and the time left; the epochs' lines scroll by above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, done: int, total: int) -> None:
        """Put the bar on the screen."""
        super().start(done, total)
        self._show("starting", done, total)

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        """Move the bar."""
        detail = speed(images_per_s) + (f"  loss {loss:.3f}" if loss is not None else "")
        self._show(where, done, self._total, detail)

    def preparing(self, done: int, total: int, what: str) -> None:
        """Move the bar of the reading, and take it away when everything is read."""
        self._show(what, done, total)
        if total and done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _show(self, where: str, done: int, total: int, detail: str = "") -> None:
        where = printable(where)
        if self._bar is None or self._task is None:
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(where, total=total or None, completed=done, detail=detail)
            self._bar.start()
        self._bar.update(self._task, description=where, completed=done, total=total or None, detail=detail)


def create_progress(*, quiet: bool = False, console: Console | None = None) -> QuietProgress:
    """Choose how to tell: on standard error, so that standard output is left to results."""
    if quiet:
        return QuietProgress()
    from rich.console import Console  # noqa: PLC0415

    console = console or Console(stderr=True)
    return BarProgress(console) if console.is_terminal else PlainProgress(console)


def speed(images_per_s: float) -> str:
    """Write a rate: whole images a second, or two digits that count where that says too little."""
    return f"{images_per_s:.{'0f' if images_per_s >= 10 else '2g'}} images/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
