"""Cells on this machine, in processes that live for many cells: each imports PyTorch and opens the images once.

The engine itself imports no PyTorch. A worker that dies, by ``kill -9``, a crash or for want of memory, is replaced,
and its cell goes on from the last checkpoint; when that costs a second worker its life, the cell has failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csham.backbones.own import pack_code
from csham.errors import UserError
from csham.study.engines import Outcome, Task, record_death
from csham.study.progress import StudyProgress
from csham.study.record import is_over, now
from csham.study.store import Store
from csham.training.interrupt import TIME_IS_OVER, StopRequest, TimeLimit

__all__ = ["available_cores", "run_local"]

_WORKER = "csham.study.worker"
_LIVES = 2
_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 2.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def run_local(
    store: Store,
    tasks: Sequence[Task],
    machine: Mapping[str, Any],
    progress: StudyProgress,
    *,
    jobs: int = 1,
    wait: bool = True,
    limit: TimeLimit | None = None,
) -> Outcome:
    """Run cells in processes of this machine.

    Args:
        store: The study's folder.
        tasks: Tasks to do, in this order.
        machine: Machine settings that were asked for.
        progress: Told what happens.
        jobs: Processes that train at the same time.
        wait: True to wait for cells that processes elsewhere have claimed.
        limit: Time by which all that runs has stopped and saved.

    Returns:
        Signal that stopped it, if any did.

    Raises:
        UserError: Nothing in this study can be trained here, or workers cannot even start.
    """
    engine = _Engine(store, tasks, machine, progress, jobs, wait, limit)
    with StopRequest(lambda: progress.note("stopping after this step; once more stops at once"), limit) as stop:
        try:
            outcome = engine.run(stop)
        except KeyboardInterrupt:
            engine.end(at_once=True)
            raise
        except BaseException:
            engine.end()
            raise
        engine.end()
        return outcome


@dataclass
class _Worker:
    """One process.

    Attributes:
        job: Its number, from 0.
        process: The process.
        log: Output of the process so far.
        task: Task that it works on.
        given_at: Time at which it got that, until the first step of it.
        answered: True if it ever said anything.
    """

    job: int
    process: subprocess.Popen[str]
    log: Path
    task: Task | None = None
    started: str = field(default_factory=now)
    given_at: float | None = None
    answered: bool = False

    def send(self, content: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its end of output will tell
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()


class _Engine:
    def __init__(
        self,
        store: Store,
        tasks: Sequence[Task],
        machine: Mapping[str, Any],
        progress: StudyProgress,
        jobs: int,
        wait: bool,
        limit: TimeLimit | None,
    ) -> None:
        self._limit = limit
        self._seconds_to_begin = 0.0  # the fewest that a cell took to its first step
        self._store, self._machine, self._progress = store, machine, progress
        self._jobs, self._wait = jobs, wait
        self._pending = list(tasks)
        self._deaths: dict[str, int] = {}
        self._workers: dict[int, _Worker] = {}
        self._events: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._gpus = _gpus(machine)
        # From this call, in which the user named the code, not from the study's file, which anyone may have written.
        self._code = pack_code(task.cell.network for task in tasks)
        self._looked_at = 0.0

    def run(self, stop: StopRequest) -> Outcome:
        """Give tasks out until none is left or a stop is wanted."""
        while stop.signum is None:
            may_begin = self._limit is None or self._limit.left() > self._seconds_to_begin
            if may_begin:
                self._give_out()
            if not any(worker.task for worker in self._workers.values()):
                if not self._pending:
                    return Outcome()
                if not may_begin:
                    return Outcome(TIME_IS_OVER)
            self._handle_events(0.2)
        for worker in self._workers.values():
            worker.process.terminate()
        while any(worker.task and worker.process.poll() is None for worker in self._workers.values()):
            self._handle_events(0.2, stopping=True)
        return Outcome(stop.signum)

    def end(self, *, at_once: bool = False) -> None:
        """End every process: idle ones kindly, others after the step unless at once."""
        for worker in self._workers.values():
            if worker.task is None:
                worker.send(None)
            elif not at_once:
                worker.process.terminate()
        patience = _SECONDS_TO_END
        if self._limit is not None:  # idle ones have nothing to lose
            patience = min(patience, max(0.0, self._limit.until_the_end() / 2))
        until = time.monotonic() + (0.0 if at_once else patience)
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))
            worker.process.kill()
            worker.process.wait()

    def _give_out(self) -> None:
        for job in range(self._jobs):
            worker = self._workers.get(job)
            if worker is not None and worker.task is not None:
                continue
            task = self._next()
            if task is None:
                return
            if worker is None:
                worker = self._workers[job] = self._start(job)
            worker.task, worker.started, worker.given_at = task, now(), time.monotonic()
            self._progress.cell(job, task.cell.label, "starting", 0.0, 0.0)
            worker.send({"key": task.cell.key, "attempts": task.attempts})

    def _next(self) -> Task | None:
        """Take the first task that no other process has done or works on."""
        if not self._pending or time.monotonic() < self._looked_at + _SECONDS_BETWEEN_LOOKS:
            return None
        records = self._store.by_key()
        for task in list(self._pending):
            record = records.get(task.cell.key)
            if record is not None and is_over(record, task.attempts):
                self._pending.remove(task)
                self._progress.ended(None, record)
            elif not self._store.is_claimed(task.cell.key):
                self._pending.remove(task)
                return task
        self._leave_to_others()
        return None

    def _leave_to_others(self) -> None:
        """All that is left is under way elsewhere: look again later, or do without."""
        self._looked_at = time.monotonic()
        if not self._pending:
            return
        others = f"{len(self._pending)} cell{'s' * (len(self._pending) > 1)} of this study"
        if self._wait:
            self._progress.note(f"waiting for {others} under way in other processes")
        elif not any(worker.task for worker in self._workers.values()):
            self._progress.note(f"{others} left to other processes, which work on them")
            self._pending.clear()

    def _start(self, job: int) -> _Worker:
        log = self._store.logs() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{job}.log"
        command = [sys.executable, "-m", _WORKER, str(self._store.path)]
        command += ["--machine", json.dumps(dict(self._machine)), "--code", json.dumps(self._code)]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding="utf-8",
                env=self._environment(job),
                start_new_session=True,  # Ctrl-C reaches the engine alone, which tells its workers
            )
        worker = _Worker(job, process, log)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _environment(self, job: int) -> dict[str, str]:
        environment = dict(os.environ)
        if not any(name in environment for name in _THREAD_VARIABLES):
            threads = str(max(1, available_cores() // self._jobs))
            environment |= dict.fromkeys(_THREAD_VARIABLES, threads)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[job % len(self._gpus)]
        return environment

    def _listen(self, worker: _Worker) -> None:
        """Pass on what a worker says, and at last that it has ended; runs in a thread of its own."""
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with contextlib.suppress(ValueError):  # a line that its death cut short
                self._events.put((worker, json.loads(line)))
        worker.process.wait()
        self._events.put((worker, None))

    def _handle_events(self, seconds: float, *, stopping: bool = False) -> None:
        """Wait for a word from a worker, and handle all there are."""
        with contextlib.suppress(queue.Empty):
            worker, event = self._events.get(timeout=seconds)
            while True:
                if event is None:
                    self._ended(worker, stopping=stopping)
                else:
                    worker.answered = True
                    self._handle(worker, event)
                worker, event = self._events.get(block=False)

    def _handle(self, worker: _Worker, event: dict[str, Any]) -> None:
        kind, task = event.pop("event"), worker.task
        if kind == "note":
            self._progress.note(event["text"])
        elif kind == "preparing":
            self._progress.preparing(**event)
        elif kind == "need":
            if self._limit is not None:
                self._limit.need(event["seconds"])
        elif kind == "step" and task is not None:
            self._note_begin(worker)
            self._progress.cell(worker.job, task.cell.label, **event)
        elif kind == "fatal":
            worker.task = None
            raise UserError(event["message"])
        elif kind == "interrupted" and task is not None:
            self._take_back(worker)  # by a signal that was not ours; it has saved
        elif kind == "ended" and task is not None:
            if event["leaving"]:
                del self._workers[worker.job]
            if event["status"] is None:
                self._take_back(worker)  # another process was faster
            else:
                worker.task = None
                self._progress.ended(worker.job, self._store.by_key()[task.cell.key])

    def _note_begin(self, worker: _Worker) -> None:
        if worker.given_at is not None:
            seconds = time.monotonic() - worker.given_at
            self._seconds_to_begin = min(self._seconds_to_begin or seconds, seconds)
            worker.given_at = None

    def _take_back(self, worker: _Worker) -> None:
        """Put a worker's task in front of the others."""
        assert worker.task is not None
        self._pending.insert(0, worker.task)
        worker.task = None
        self._progress.idle(worker.job)

    def _ended(self, worker: _Worker, *, stopping: bool) -> None:
        """A process is gone: give its task another life, unless it was meant to go."""
        if self._workers.get(worker.job) is worker:
            del self._workers[worker.job]
            self._progress.idle(worker.job)
        task, code = worker.task, worker.process.returncode
        worker.task = None
        if stopping or task is None:
            return
        if not worker.answered and code > 0:
            raise UserError(
                f"a worker could not start (exit code {code}); the end of {worker.log}:",
                *_tail(worker.log).splitlines(),
            )
        key = task.cell.key
        self._deaths[key] = self._deaths.get(key, 0) + 1
        why = _cause_of_death(code)
        if self._deaths[key] < _LIVES:
            self._progress.note(f"{task.cell.label}: {why}; going on from its last checkpoint")
            self._pending.insert(0, task)
        else:
            error = {"type": "WorkerDied", "message": f"{why}, {_LIVES} times", "traceback": _tail(worker.log)}
            record = record_death(self._store, task, error, worker.started)
            if record is not None:
                self._progress.ended(worker.job, record)


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9; out of memory?)"
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with exit code {code}"


def _tail(log: Path, lines: int = 20) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(machine: Mapping[str, Any]) -> list[str]:
    """Return the GPUs to share among the jobs, as CUDA_VISIBLE_DEVICES names them; none if a device was named."""
    if machine.get("device", "auto") not in ("auto", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, _ in enumerate(_gpu_lines(listed.stdout))]


def _gpu_lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith("GPU "))
