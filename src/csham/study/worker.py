"""A process that runs cells: ``python -m csham.study.worker STUDY``, told which by JSON lines on its standard input.

It answers with JSON lines on its standard output; what anything prints goes to standard error, which the engine keeps
in the study's ``logs``. ``null`` ends it. When its input ends without, the engine was killed: the run under way stops
after the step and saves, as it does for a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from csham.backbones.own import unpack_code
from csham.errors import UserError
from csham.study.store import Store
from csham.training.interrupt import STOP_SIGNALS, InterruptedRunError
from csham.training.progress import QuietProgress
from csham.words import say

__all__ = ["main"]

_SECONDS_BETWEEN_STEPS = 0.5


def main(argv: list[str] | None = None) -> int:
    """Run cells until there are no more."""
    parser = argparse.ArgumentParser(prog="python -m csham.study.worker", description="Runs cells of a study.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--machine", default="{}", help="machine settings, as JSON")
    parser.add_argument("--code", default="[]", help="code of the user's own, as csham.backbones.own packs it, as JSON")
    options = parser.parse_args(argv)
    answers = _Answers(_own_stdout())
    tasks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    for signum in STOP_SIGNALS:
        signal.signal(signum, answers.handle_signal)
    try:
        unpack_code(json.loads(options.code))
        return _work(Store(options.study, answers.note), json.loads(options.machine), tasks, answers)
    except InterruptedRunError as err:
        answers.send("interrupted", signum=err.signum)
        return 128 + err.signum
    except UserError as err:
        answers.send("fatal", message=str(err))
        return 2


def _work(
    store: Store,
    machine: Mapping[str, Any],
    tasks: queue.SimpleQueue[dict[str, Any] | None],
    answers: _Answers,
) -> int:
    # Imported here, so that an engine that gives up meanwhile does not wait for PyTorch.
    from csham.study.cell import CellRunner  # noqa: PLC0415

    # Run folders tell the command that began them, which was the study's.
    sys.argv = shlex.split(store.study.command.partition(" && ")[0]) or sys.argv
    runner = CellRunner(store, machine, answers)
    while (task := tasks.get()) is not None:
        try:
            record = runner.run(task["key"], task["attempts"])
        finally:
            answers.training = False
        status = None if record is None else record["status"]
        answers.send("ended", status=status, leaving=runner.must_restart)
        if runner.must_restart:
            return 0
    return 0


def _read_tasks(tasks: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        task = json.loads(line)
        tasks.put(task)
        if task is None:
            return
    os.kill(os.getpid(), signal.SIGTERM)


def _own_stdout() -> TextIO:
    """Keep standard output for answers; what others print there goes to standard error from now on."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


class _Answers(QuietProgress):
    """Progress of a run, told to the engine.

    Attributes:
        training: True if a run is under way, which answers the first signal itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self.training = False
        self._stream = stream
        self._total = 1
        self._last_step = 0.0
        self._needed = 0.0

    def send(self, event: str, **content: Any) -> None:
        try:
            self._stream.write(json.dumps({"event": event, **content}) + "\n")
            self._stream.flush()
        except BrokenPipeError:  # the engine is gone; its end of our input tells us so too
            pass

    def note(self, text: str) -> None:
        say(text, error=True)  # the log
        self.send("note", text=text)

    def start(self, done: int, total: int) -> None:
        self._total = total
        self.training = True

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        # A batch system and the engine may both send one. The first of them lets a run stop and save; the second
        # must not cut that short, so it is left to the engine to kill.
        if not self.training:
            raise SystemExit(128 + signum)

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        if time.monotonic() - self._last_step >= _SECONDS_BETWEEN_STEPS:
            self._last_step = time.monotonic()
            self.send("step", where=where, fraction=done / self._total, images_per_s=images_per_s)

    def need(self, seconds: float) -> None:
        if seconds > self._needed:
            self._needed = seconds
            self.send("need", seconds=seconds)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        say(json.dumps(dict(row)), error=True)  # the log

    def preparing(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._last_step >= _SECONDS_BETWEEN_STEPS or done >= total:
            self._last_step = time.monotonic()
            self.send("preparing", done=done, total=total, what=what)


if __name__ == "__main__":
    sys.exit(main())
