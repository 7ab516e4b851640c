"""Ctrl-C, SIGTERM, SIGUSR1 and the end of a command's time as a request that the loop answers between two steps."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from csham.errors import UserError

__all__ = [
    "STOPPING",
    "STOP_SIGNALS",
    "TIME_IS_OVER",
    "InterruptedRunError",
    "StopRequest",
    "TimeIsOverError",
    "TimeLimit",
    "why_stopped",
]

# Batch systems send SIGUSR1 before the end, to each process of a job and perhaps more than once.
_EARLY = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []
_LATE = [signal.SIGINT, signal.SIGTERM]

STOP_SIGNALS = (*_LATE, *_EARLY)
"""Signals that ask for a stop."""

TIME_IS_OVER = 14
"""Stands for a signal where the time is over: the number of SIGALRM, which Windows has not."""

STOPPING = "stopping after this step; once more stops at once"
"""Note to the user who asked for a stop."""

_SECONDS_TO_END = 2.0  # of a process that has saved


class InterruptedRunError(Exception):
    """A run that was stopped by a signal, or because its time is over, and can go on.

    Attributes:
        run: The run folder.
        signum: The signal, or ``TIME_IS_OVER``.
    """

    def __init__(self, run: Path, signum: int) -> None:
        super().__init__(f"stopped; csham train --resume {run} goes on where it stopped")
        self.run = run
        self.signum = signum


class TimeIsOverError(KeyboardInterrupt):
    """Raised where the time is over and nothing answered the request to stop: it stops at once, as Ctrl-C does."""


class TimeLimit:
    """Time by which a command is to have ended, everything saved.

    Args:
        minutes: Length of it, above 0.
        started: Time on ``clock`` from which it counts; None is now.
        clock: Tells the seconds.

    Attributes:
        reserve: Seconds that stopping and saving are known to take.

    Raises:
        UserError: ``minutes`` is no such number.
    """

    def __init__(
        self, minutes: float, started: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (math.isfinite(minutes) and minutes > 0):
            raise UserError(f"--minutes must be a number above 0, got {minutes:g}.")
        self.minutes = minutes
        self.reserve = 0.0
        self._clock = clock
        self._until = (clock() if started is None else started) + 60 * minutes

    def need(self, seconds: float) -> None:
        """Tell how long stopping takes, as far as somebody knows."""
        self.reserve = max(self.reserve, seconds)

    def left(self) -> float:
        """Return the seconds in which something may be done that is kept."""
        return self.until_the_end() - self.reserve - _SECONDS_TO_END

    def until_the_end(self) -> float:
        """Return the seconds until the command is to have ended."""
        return self._until - self._clock()

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ``TimeIsOverError`` within, at the very end of the time, where the system has alarms.

        Raises:
            TimeIsOverError: The end came.
        """
        seconds = self.until_the_end()
        if seconds <= 0:
            raise TimeIsOverError
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            yield
            return
        begun = time.monotonic()
        before = signal.signal(signal.SIGALRM, _raise)
        other, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            if other:  # somebody else's alarm goes on
                signal.setitimer(signal.ITIMER_REAL, max(other - (time.monotonic() - begun), 1e-3), interval)


def why_stopped(signum: int, limit: TimeLimit | None) -> str:
    """Return what a stopped command says first."""
    return f"stopped for time (--minutes {limit.minutes:g})" if limit and signum == TIME_IS_OVER else "stopped"


class StopRequest:
    """While entered, the first signal only sets ``signum``; a second Ctrl-C or SIGTERM acts as it always did.

    Args:
        on_request: Called at the first signal.
        limit: Time whose end is such a request too.
    """

    def __init__(self, on_request: Callable[[], None] | None = None, limit: TimeLimit | None = None) -> None:
        self.limit = limit
        self._signum: int | None = None
        self._on_request = on_request
        self._before: dict[int, Any] = {}

    @property
    def signum(self) -> int | None:
        """Signal that asked for a stop, or ``TIME_IS_OVER``; None while nothing did."""
        if self._signum is None and self.limit is not None and self.limit.left() <= 0:
            self._signum = TIME_IS_OVER
        return self._signum

    def request(self, signum: int) -> None:
        """Ask for a stop, as this signal would."""
        self._signum = self._signum or signum

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self._before = {signum: signal.signal(signum, self._handle) for signum in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(STOP_SIGNALS)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self._signum is None
        self.request(signum)
        self._restore(_LATE)
        if first and self._on_request is not None:
            # A stream that was being written to when the signal came refuses another line. Stopping matters more.
            with contextlib.suppress(RuntimeError):
                self._on_request()

    def _restore(self, signals: tuple[signal.Signals, ...] | list[signal.Signals]) -> None:
        for signum in signals:
            if signum in self._before:
                signal.signal(signum, self._before.pop(signum))


def _raise(signum: int, frame: FrameType | None) -> None:
    raise TimeIsOverError
