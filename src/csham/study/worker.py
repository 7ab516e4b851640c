"""A process that runs cells: ``python -m csham.study.worker STUDY``, told which by JSON lines on its standard input.

It answers with JSON lines on its standard output; what anything prints goes to standard error, which the engine keeps
in the study's ``logs``. It is told of as many cells at once as it says that it has room for, and lets them take turns.
``null`` ends it. When its input ends without, the engine was killed: the runs under way stop after the step and save,
as they do for a signal.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from csham.backbones.own import unpack_code
from csham.errors import UserError
from csham.study.store import Store
from csham.training.interrupt import STOP_SIGNALS, StopRequest
from csham.training.progress import QuietProgress
from csham.words import say

if TYPE_CHECKING:  # imports torch
    from csham.study.together import Together

__all__ = ["main"]

_SECONDS_BETWEEN_STEPS = 0.5

_Tasks: TypeAlias = queue.SimpleQueue[dict[str, Any] | None]


def main(argv: list[str] | None = None) -> int:
    """Run cells until there are no more."""
    parser = argparse.ArgumentParser(prog="python -m csham.study.worker", description="Runs cells of a study.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--machine", default="{}", help="machine settings, as JSON")
    parser.add_argument("--runs", default="1", help="cells at once, or auto, as many as are worth it")
    parser.add_argument("--code", default="[]", help="code of the user's own, as csham.backbones.own packs it, as JSON")
    options = parser.parse_args(argv)
    answers = _Answers(_own_stdout())
    tasks: _Tasks = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    for signum in STOP_SIGNALS:
        signal.signal(signum, answers.handle_signal)
    try:
        unpack_code(json.loads(options.code))
        most = None if options.runs == "auto" else int(options.runs)
        return _work(Store(options.study, answers.note), json.loads(options.machine), most, tasks, answers)
    except UserError as err:
        answers.send("fatal", message=str(err))
        return 2


def _work(store: Store, machine: Mapping[str, Any], most: int | None, tasks: _Tasks, answers: _Answers) -> int:
    # Imported here, so that an engine that gives up meanwhile does not wait for PyTorch.
    from csham.study.cell import CellRunner  # noqa: PLC0415
    from csham.study.together import Together  # noqa: PLC0415

    # Run folders tell the command that began them, which was the study's.
    sys.argv = shlex.split(store.study.command.partition(" && ")[0]) or sys.argv
    runner = CellRunner(store, machine, answers, answers.stop, shares_process=most != 1)
    together, fatal, more = Together(runner, machine.get("device", "auto"), most, answers.stop), "", True
    answers.turn_of = lambda: together.turn_of
    while more or together:
        more = more and answers.stop.signum is None and _take(tasks, together, answers)
        for ended in together.go_round():
            answers.end(ended.key, together.room.runs)
            if ended.fatal:
                fatal = fatal or ended.fatal
                answers.stop.request(signal.SIGTERM)  # the others save first
            elif ended.stopped:
                answers.send("interrupted", key=ended.key)
            else:
                status = None if ended.record is None else ended.record["status"]
                answers.send("ended", key=ended.key, status=status, leaving=runner.must_restart)
            if runner.must_restart:
                return 0
        answers.tell_room(together.room.runs)
    if fatal:
        raise UserError(fatal)
    return 0 if answers.stop.signum is None else 128 + answers.stop.signum


def _take(tasks: _Tasks, together: Together, answers: _Answers) -> bool:
    """Take in what there is room for, and wait if there is nothing to do; return False after the last task."""
    while len(together) < together.room.runs:
        try:
            task = tasks.get(block=not together)
        except queue.Empty:
            break
        if task is None:
            return False
        progress = answers.begin(task["key"])
        together.begin(task["key"], task["kind"], task["attempts"], progress)
    return True


def _read_tasks(tasks: _Tasks) -> None:
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
    """What the engine is told, by this process and by the cells in it.

    Attributes:
        stop: Asks the cells to stop.
        turn_of: Tells the key of the cell whose turn it is.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stop = StopRequest()
        self.turn_of: Callable[[], str] = str
        self._stream = stream
        self._last = 0.0
        self._runs = 0
        self._needed = 0.0
        self._cells: dict[str, _CellAnswers] = {}

    def send(self, event: str, **content: Any) -> None:
        try:
            self._stream.write(json.dumps({"event": event, **content}) + "\n")
            self._stream.flush()
        except BrokenPipeError:  # the engine is gone; its end of our input tells us so too
            pass

    def begin(self, key: str) -> _CellAnswers:
        """Return the progress of a cell that begins."""
        self._cells[key] = _CellAnswers(self, key)
        return self._cells[key]

    def end(self, key: str, runs: int) -> None:
        """Tell that a cell has ended, and how many there is room for from now on."""
        del self._cells[key]
        self.tell_room(runs)

    def tell_room(self, runs: int) -> None:
        if runs != self._runs:
            self._runs = runs
            self.send("room", runs=runs)

    def tell_need(self) -> None:
        """Tell how long it takes until all cells have stopped, one after the other."""
        needed = sum(cell.needed for cell in self._cells.values())
        if needed > self._needed:
            self._needed = needed
            self.send("need", seconds=needed)

    def note(self, text: str) -> None:
        say(text, error=True)  # the log
        self.send("note", text=text)

    def handle_signal(self, signum: int, frame: FrameType | None) -> None:
        # A batch system and the engine may both send one. The first of them lets runs stop and save; the second must
        # not cut that short, so it is left to the engine to kill.
        self.stop.request(signum)
        now = self._cells.get(self.turn_of())
        if not (now.training if now else any(cell.training for cell in self._cells.values())):
            raise SystemExit(128 + signum)

    def preparing(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_STEPS or done >= total:
            self._last = time.monotonic()
            self.send("preparing", done=done, total=total, what=what)


class _CellAnswers(QuietProgress):
    """Progress of one cell, told to the engine.

    Attributes:
        training: True if it has begun to train, so that it answers a request to stop.
        needed: Seconds that it takes to stop.
    """

    def __init__(self, answers: _Answers, key: str) -> None:
        self.training, self.needed = False, 0.0
        self._answers, self._key = answers, key
        self._total, self._last = 1, 0.0

    def note(self, text: str) -> None:
        self._answers.note(text)

    def start(self, done: int, total: int) -> None:
        self._total, self.training = total, True

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_STEPS:
            self._last = time.monotonic()
            fraction = done / self._total
            self._answers.send("step", key=self._key, where=where, fraction=fraction, images_per_s=images_per_s)

    def need(self, seconds: float) -> None:
        if seconds > self.needed:
            self.needed = seconds
            self._answers.tell_need()

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        say(json.dumps({"key": self._key, **row}), error=True)  # the log

    def preparing(self, done: int, total: int, what: str) -> None:
        self._answers.preparing(done, total, what)


if __name__ == "__main__":
    sys.exit(main())
