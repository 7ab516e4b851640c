"""Cells on this machine, in processes that live for many cells: each imports PyTorch and opens the images once.

A process trains one cell at a time or, on a GPU of its own, several in turns. The engine itself imports no PyTorch. A
worker that dies, by ``kill -9``, a crash or for want of memory, is replaced, and its cells go on from their last
checkpoints, in half the company where there were several; when a cell alone costs a second worker its life, it has
failed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csham.backbones.own import pack_code
from csham.errors import UserError
from csham.study.engines import Outcome, Task, record_death
from csham.study.progress import StudyProgress
from csham.study.record import is_over, now
from csham.study.store import Store
from csham.training.interrupt import STOPPING, TIME_IS_OVER, StopRequest, TimeLimit
from csham.words import counted

__all__ = ["available_cores", "run_local"]

_WORKER = "csham.study.worker"
_LIVES = 2
_ANY = sys.maxsize
_TAIL = 20  # lines of a log
_ONE_RUN_A_PROCESS = ("wandb", "mlflow")
_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_SAY = 120.0  # of a driver that wakes up, or of importing PyTorch over a network
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def run_local(
    store: Store,
    tasks: Sequence[Task],
    machine: Mapping[str, Any],
    progress: StudyProgress,
    *,
    jobs: int | None = None,
    together: bool | None = None,
    wait: bool = True,
    limit: TimeLimit | None = None,
) -> Outcome:
    """Run cells in processes of this machine.

    Args:
        store: The study's folder.
        tasks: Tasks to do, in this order.
        machine: Machine settings that were asked for.
        progress: Told what happens.
        jobs: Cells to train at the same time; None is one, or together as many as are worth it.
        together: True if one process trains them in turns, one for each GPU where there are any; None where there are.
        wait: True to wait for cells that processes elsewhere have claimed.
        limit: Time by which all that runs has stopped and saved.

    Returns:
        Signal that stopped it, if any did.

    Raises:
        UserError: Nothing in this study can be trained here, or workers cannot even start.
    """
    gpus = _gpus(machine)
    engine = _Engine(store, tasks, machine, progress, gpus, _rooms(machine, gpus, jobs, together), wait, limit)
    with StopRequest(lambda: progress.note(STOPPING), limit) as stop:
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


def _rooms(
    machine: Mapping[str, Any], gpus: Sequence[str], jobs: int | None, together: bool | None
) -> list[int | None]:
    """Return for each process how many cells it trains at once; None leaves that to it."""
    alone = [name for name in machine.get("trackers", ()) if name in _ONE_RUN_A_PROCESS]
    if together and alone:
        raise UserError(f"--together: {alone[0]} tracks one run a process. Leave out one of them.")
    if together is None:
        device = machine.get("device", "auto")
        together = (bool(gpus) if device == "auto" else device.startswith("cuda")) and not alone
    if not together:
        return [1] * (jobs or 1)
    processes = max(1, len(gpus))
    if jobs is None:
        return [None] * processes
    processes = min(processes, jobs)
    return [jobs // processes + (number < jobs % processes) for number in range(processes)]


@dataclass
class _Run:
    """A cell under way.

    Attributes:
        task: The task.
        job: Number of it among those that are under way at the same time, from 0.
        given_at: Time at which a process got it, until the first step of it.
    """

    task: Task
    job: int
    started: str = field(default_factory=now)
    given_at: float | None = field(default_factory=time.monotonic)


@dataclass
class _Worker:
    """One process.

    Attributes:
        number: Its number, from 0.
        process: The process.
        log: Output of the process so far.
        room: Cells that it takes at once.
        runs: Those that it works on, by their keys.
        answered: True if it ever said anything.
        leaving: True if it takes no more.
    """

    number: int
    process: subprocess.Popen[str]
    log: Path
    room: int
    runs: dict[str, _Run] = field(default_factory=dict)
    answered: bool = False
    leaving: bool = False

    def send(self, content: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its end of output will tell
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Close what it was told by; the thread that listens closes the other pipe."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class _Engine:
    def __init__(
        self,
        store: Store,
        tasks: Sequence[Task],
        machine: Mapping[str, Any],
        progress: StudyProgress,
        gpus: Sequence[str],
        rooms: Sequence[int | None],
        wait: bool,
        limit: TimeLimit | None,
    ) -> None:
        self._limit = limit
        self._gpus, self._rooms, self._wait = gpus, rooms, wait
        self._seconds_to_begin = 0.0  # the fewest that a cell took to its first step
        self._store, self._machine, self._progress = store, machine, progress
        self._pending = list(tasks)
        self._deaths: dict[str, int] = {}
        self._company: dict[str, int] = {}  # most cells in one process, where a cell was in one that died
        self._workers: dict[int, _Worker] = {}
        self._events: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        # From this call, in which the user named the code, not from the study's file, which anyone may have written.
        self._code = pack_code(task.cell.network for task in tasks)
        self._looked_at = 0.0

    def run(self, stop: StopRequest) -> Outcome:
        """Give tasks out until none is left or a stop is wanted."""
        while stop.signum is None:
            may_begin = self._limit is None or self._limit.left() > self._seconds_to_begin
            if may_begin:
                self._give_out()
            if not self._under_way:
                if not self._pending:
                    return Outcome()
                if not may_begin:
                    return Outcome(TIME_IS_OVER)
            self._handle_events()
        for worker in self._workers.values():
            worker.process.terminate()
        while any(worker.runs and worker.process.poll() is None for worker in self._workers.values()):
            self._handle_events(stopping=True)
        return Outcome(stop.signum)

    def end(self, *, at_once: bool = False) -> None:
        """End every process: idle ones kindly, others after the step unless at once."""
        for worker in self._workers.values():
            if not worker.runs:
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
            worker.close()

    @property
    def _under_way(self) -> list[_Run]:
        return [run for worker in self._workers.values() for run in worker.runs.values()]

    def _give_out(self) -> None:
        while any(self._give(number) for number in self._with_room()):
            pass

    def _with_room(self) -> list[int]:
        """Return the numbers of the processes that take another cell, started or not, emptiest first."""
        numbers = range(len(self._rooms))
        workers = {number: self._workers.get(number) for number in numbers}
        runs = {number: len(worker.runs) if worker else 0 for number, worker in workers.items()}
        free = [n for n, worker in workers.items() if not worker or (runs[n] < worker.room and not worker.leaving)]
        return sorted(free, key=runs.__getitem__)

    def _give(self, number: int) -> bool:
        worker = self._workers.get(number)
        task = self._next([] if worker is None else list(worker.runs))
        if task is None:
            return False
        if worker is None:
            worker = self._workers[number] = self._start(number)
        jobs = {run.job for run in self._under_way}
        run = worker.runs[task.cell.key] = _Run(task, next(job for job in itertools.count() if job not in jobs))
        self._progress.cell(run.job, task.cell.label, "starting", 0.0, 0.0)
        worker.send({"key": task.cell.key, "kind": task.cell.network.label, "attempts": task.attempts})
        return True

    def _next(self, company: Sequence[str]) -> Task | None:
        """Take the first task that no other process has done or works on, and that may join these cells."""
        if not self._pending or time.monotonic() < self._looked_at + _SECONDS_BETWEEN_LOOKS:
            return None
        records, apart = self._store.by_key(), False
        for task in list(self._pending):
            record = records.get(task.cell.key)
            if record is not None and is_over(record, task.attempts):
                self._pending.remove(task)
                self._progress.ended(None, record)
            elif not all(len(company) < self._company.get(key, _ANY) for key in (task.cell.key, *company)):
                apart = True
            elif not self._store.is_claimed(task.cell.key):
                self._pending.remove(task)
                return task
        if not apart:
            self._leave_to_others()
        return None

    def _leave_to_others(self) -> None:
        """All that is left is under way elsewhere: look again later, or do without."""
        self._looked_at = time.monotonic()
        if not self._pending:
            return
        others = f"{counted(len(self._pending), 'cell')} of this study"
        if self._wait:
            self._progress.note(f"waiting for {others} under way in other processes")
        elif not self._under_way:
            self._progress.note(f"{others} left to other processes, which work on them")
            self._pending.clear()

    def _start(self, number: int) -> _Worker:
        log = self._store.logs() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{number}.log"
        room = self._rooms[number]
        command = [sys.executable, "-m", _WORKER]
        command += ["--machine", json.dumps(dict(self._machine)), "--code", json.dumps(self._code)]
        command += ["--runs", "auto" if room is None else str(room), "--", str(self._store.path)]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding="utf-8",
                env=self._environment(number),
                start_new_session=True,  # Ctrl-C reaches the engine alone, which tells its workers
            )
        worker = _Worker(number, process, log, room or 1)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _environment(self, number: int) -> dict[str, str]:
        environment = {"PYTHONSAFEPATH": "1", **os.environ}  # for its own processes too, as -P is not
        if not any(name in environment for name in _THREAD_VARIABLES):
            threads = str(max(1, available_cores() // len(self._rooms)))
            environment |= dict.fromkeys(_THREAD_VARIABLES, threads)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        return environment

    def _listen(self, worker: _Worker) -> None:
        """Pass on what a worker says, and at last that it has ended; runs in a thread of its own."""
        assert worker.process.stdout is not None
        with worker.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a line that its death cut short
                    self._events.put((worker, json.loads(line)))
        worker.process.wait()
        self._events.put((worker, None))

    def _handle_events(self, *, stopping: bool = False) -> None:
        """Wait for a word from a worker, and handle all there are."""
        with contextlib.suppress(queue.Empty):
            worker, event = self._events.get(timeout=0.2)
            while True:
                if event is None:
                    self._ended(worker, stopping=stopping)
                else:
                    worker.answered = True
                    self._handle(worker, event)
                worker, event = self._events.get(block=False)

    def _handle(self, worker: _Worker, event: dict[str, Any]) -> None:
        kind, run = event.pop("event"), worker.runs.get(event.pop("key", ""))
        if kind == "note":
            self._progress.note(event["text"])
        elif kind == "preparing":
            self._progress.preparing(**event)
        elif kind == "need":
            if self._limit is not None:
                self._limit.need(event["seconds"])
        elif kind == "room":
            worker.room = event["runs"]
        elif kind == "fatal":
            worker.runs.clear()
            raise UserError(event["message"])
        elif run is not None:
            self._handle_of(worker, run, kind, event)

    def _handle_of(self, worker: _Worker, run: _Run, kind: str, event: dict[str, Any]) -> None:
        """Handle what a worker says of a cell."""
        if kind == "step":
            self._note_begin(run)
            self._progress.cell(run.job, run.task.cell.label, **event)
        elif kind == "interrupted":
            worker.leaving = True  # by a signal that was not ours, or what comes as fatal; it has saved
            self._take_back(worker, run)
        elif kind == "ended":
            if event["status"] is None:
                self._take_back(worker, run)  # another process was faster, or there is no room for it
            else:
                del worker.runs[run.task.cell.key]
                self._progress.ended(run.job, self._store.by_key()[run.task.cell.key])
            if event["leaving"]:
                for other in list(worker.runs.values()):  # not begun
                    self._take_back(worker, other)
                worker.close()
                del self._workers[worker.number]

    def _note_begin(self, run: _Run) -> None:
        if run.given_at is not None:
            seconds = time.monotonic() - run.given_at
            self._seconds_to_begin = min(self._seconds_to_begin or seconds, seconds)
            run.given_at = None

    def _take_back(self, worker: _Worker, run: _Run) -> None:
        """Put a worker's task in front of the others."""
        self._pending.insert(0, run.task)
        del worker.runs[run.task.cell.key]
        self._progress.idle(run.job)

    def _ended(self, worker: _Worker, *, stopping: bool) -> None:
        """A process is gone: give its tasks another life, unless it was meant to go."""
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
        worker.close()
        runs, code = list(worker.runs.values()), worker.process.returncode
        worker.runs.clear()
        for run in runs:
            self._progress.idle(run.job)
        if stopping or not runs:
            return
        if not worker.answered and code > 0:
            raise UserError(
                f"a worker could not start (exit code {code}); the end of {worker.log}:",
                *_tail(worker.log).splitlines(),
            )
        for run in reversed(runs):
            self._bury(worker, run, len(runs), _cause_of_death(code))

    def _bury(self, worker: _Worker, run: _Run, company: int, why: str) -> None:
        """Let a cell whose process died among so many go on; one that died alone too often has failed."""
        task, key = run.task, run.task.cell.key
        if company > 1:  # any of them may be the cause: halves find out which
            self._company[key] = company // 2
        else:
            self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths.get(key, 0) < _LIVES:
            self._progress.note(f"{task.cell.label}: {why}; going on from its last checkpoint")
            self._pending.insert(0, task)
        else:
            error = {"type": "WorkerDied", "message": f"{why}, {_LIVES} times", "traceback": _tail(worker.log)}
            record = record_death(self._store, task, error, run.started)
            if record is not None:
                self._progress.ended(run.job, record)


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9; out of memory?)"
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with exit code {code}"


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
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
        names = [name.strip() for name in visible.split(",")]
        shown = list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA reads it
    else:
        lines = _said(["nvidia-smi", "--list-gpus"]).splitlines()
        shown = [str(number) for number in range(sum(line.startswith("GPU ") for line in lines))]
    return shown[: _seen_by_torch()] if shown else []


def _seen_by_torch() -> int:
    """Return how many GPUs PyTorch can use: it may be built without CUDA, the driver too old, a name not there."""
    code = "import torch; print(torch.cuda.is_available() and torch.cuda.device_count())"
    *_, last = ["0", *_said([sys.executable, "-P", "-c", code]).split()]
    return int(last) if last.isdecimal() else 0


def _said(command: Sequence[str]) -> str:
    """Return the output of a command; empty where there is no such command, or it takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_SAY, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
