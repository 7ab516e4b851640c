"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptedRunError", "StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(Exception):
    """A run that was stopped by a signal and can go on.

    Attributes:
        run: The run folder.
        signum: The signal.
    """

    def __init__(self, run: Path, signum: int) -> None:
        super().__init__(f"stopped; csham train --resume {run} goes on where it stopped")
        self.run = run
        self.signum = signum


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets ``signum``; the second acts as it always did."""

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        self.signum: int | None = None
        self._on_request = on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self._before = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()
        if self._on_request is not None:
            # A stream that was being written to when the signal came refuses another line. Stopping matters more.
            with contextlib.suppress(RuntimeError):
                self._on_request()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
