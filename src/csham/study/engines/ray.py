"""Cells on a Ray cluster: each is a task that Ray starts on a node with room for it, and again where its process dies.

Where a node sees the study's folder, on storage that it shares, its processes claim cells, train in the folder and
append their records as those of any other engine do, and a cell that was cut off goes on from its last checkpoint. A
node that does not see it works in its own cache, and the driver puts the run folder and the record into the study; such
a cell starts over on another node.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import socket
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from csham.backbones.own import pack_code, unpack_code
from csham.errors import UserError, first_line_of
from csham.files import cache_root, write_atomically
from csham.study.engines import Outcome, Task, record_death
from csham.study.progress import StudyProgress
from csham.study.record import DamagedRunError, is_over, now
from csham.study.store import Store
from csham.study.study_file import FILE
from csham.training.interrupt import STOPPING, InterruptedRunError, StopRequest, TimeLimit
from csham.training.progress import QuietProgress
from csham.words import counted

__all__ = ["run_ray"]

_RETRIES = 3
# Of a cell that ended before it said anything: no job has this number.
_NO_BAR = -2
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_UNTIL_OTHERS_ARE_ASKED = 5.0
_SECONDS_TO_STOP = 120.0
# Of a head that does not answer. After 60 Ray ends this process by itself, and says nothing of the study.
_SECONDS_WITHOUT_HEAD = 40.0
# Of a cluster for one call: run folders pass through the object store only between machines.
_OBJECT_STORE_BYTES = 256 * 2**20


def run_ray(
    store: Store,
    tasks: Sequence[Task],
    machine: Mapping[str, Any],
    progress: StudyProgress,
    *,
    address: str | None = None,
    num_cpus: int = 1,
    wait: bool = True,
    limit: TimeLimit | None = None,
) -> Outcome:
    """Run cells as tasks of a Ray cluster.

    Args:
        store: The study's folder.
        tasks: Tasks to do, in this order.
        machine: Machine settings that were asked for.
        progress: Told what happens.
        address: Of a cluster, as ``ray.init`` takes it (``"auto"``, ``"10.0.0.1:6379"``); None starts one on this
            machine for this call.
        num_cpus: Cores for each cell, and its threads; it gets a GPU too where the cluster has any and ``machine``
            names no other device.
        wait: True to wait for cells that processes elsewhere have claimed.
        limit: Time by which all that runs has stopped and saved.

    Returns:
        Signal that stopped it, if any did.

    Raises:
        UserError: Ray is not installed, there is no cluster, no node has room for a cell, or nothing in this study can
            be trained there.
    """
    ray = _import_ray()
    stopping = StopRequest(lambda: progress.note(STOPPING), limit)
    # Ray prints what befalls its processes, and standard output is for results.
    with contextlib.redirect_stdout(sys.stderr), _connected(ray, address), stopping as stop:
        gpus = _gpus(ray, machine)
        _check_room(ray, num_cpus, gpus)
        resources = {"num_cpus": num_cpus, "num_gpus": gpus}
        engine = _Engine(ray, store, tasks, dict(machine), progress, resources, wait, limit)
        try:
            return engine.run(stop)
        finally:
            engine.end()


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: it would report to its makers
    try:
        import ray  # noqa: PLC0415
    except ImportError as err:
        raise UserError('--engine ray needs Ray. Install it: pip install "csham[ray]".') from err
    return ray


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one, unless this process is connected already."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(**_init_settings(address))
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as err:
        where = f"to the Ray cluster {address}" if address else "a Ray cluster on this machine"
        raise UserError(f"cannot {'connect' if address else 'start'} {where}: {first_line_of(err)}") from err
    try:
        yield
    finally:
        ray.shutdown()


def _init_settings(address: str | None) -> dict[str, Any]:
    package = Path(__file__).parents[2]
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
        settings |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        return settings | {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    kernels = {name: os.environ[name] for name in ("CSHAM_KERNELS",) if name in os.environ}
    # The nodes need not have csham installed, nor this version: they get this one.
    return settings | {"address": address, "runtime_env": {"py_modules": [str(package)], "env_vars": kernels}}


def _gpus(ray: ModuleType, machine: Mapping[str, Any]) -> float:
    wanted = machine.get("device", "auto") in ("auto", "cuda")
    return 1.0 if wanted and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _check_room(ray: ModuleType, num_cpus: int, num_gpus: float) -> None:
    """Refuse what no node has, which Ray would wait for without an end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
        most = [f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes]
        raise UserError(
            f"no node of the Ray cluster has {num_cpus} cores and {num_gpus:g} GPUs for a cell; they have "
            f"{', '.join(most) or 'nothing'}."
        )


class _Engine:
    def __init__(
        self,
        ray: ModuleType,
        store: Store,
        tasks: Sequence[Task],
        machine: dict[str, Any],
        progress: StudyProgress,
        resources: Mapping[str, Any],
        wait: bool,
        limit: TimeLimit | None,
    ) -> None:
        self._limit = limit
        self._ray, self._store, self._machine, self._progress, self._wait = ray, store, machine, progress, wait
        self._started = now()
        self._pending = list(tasks)
        self._running: dict[Any, Task] = {}
        self._jobs: dict[str, int] = {}
        self._asked_at = 0.0
        # By this a node tells whether the folder that it sees under the study's path is the study's.
        self._mark = store.mark()
        self._board = ray.remote(num_cpus=0)(_Board).remote()
        self._head = _Head(ray)
        # A process for each cell: one that was stopped in mid-import, or ran out of memory, is fit for nothing.
        self._run_cell = ray.remote(**resources, max_retries=_RETRIES, max_calls=1)(_run_cell)

    def run(self, stop: StopRequest) -> Outcome:
        """Give every task to Ray, and take what comes back."""
        while stop.signum is None:
            self._give_out()
            if not self._running:
                if not self._pending:
                    return Outcome()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            self._handle_ended(_SECONDS_BETWEEN_LOOKS)
            silence = self._head.seconds_of_silence()
            if silence > _SECONDS_WITHOUT_HEAD:
                raise UserError(
                    f"the head of the Ray cluster, {self._head.address}, does not answer any more. The study in "
                    f"{self._store.path} goes on from the last checkpoints when you give the command again: with a "
                    "cluster that answers, or without --engine ray on this machine."
                )
            if not silence:
                self._show()
        for reference in self._running:
            self._ray.cancel(reference, force=False)  # as a signal to the process, which saves and ends
        until = time.monotonic() + _SECONDS_TO_STOP
        while self._running and time.monotonic() < until:
            self._handle_ended(_SECONDS_BETWEEN_LOOKS, stopping=True)
        return Outcome(stop.signum)

    def end(self) -> None:
        """End what still runs, at once."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        with contextlib.suppress(Exception):
            self._ray.kill(self._board)
        self._mark.path.unlink(missing_ok=True)
        self._mark.release()

    def _give_out(self) -> None:
        """Hand to Ray what no other process has done or works on."""
        if not self._pending or time.monotonic() < self._asked_at + _SECONDS_UNTIL_OTHERS_ARE_ASKED:
            return
        self._asked_at = time.monotonic()
        records, left = self._store.by_key(), []
        for task in self._pending:
            record = records.get(task.cell.key)
            if record is not None and is_over(record, task.attempts):
                self._progress.ended(None, record)
            elif self._store.is_claimed(task.cell.key):
                left.append(task)
            else:
                self._submit(task)
        self._pending = left
        others = f"{counted(len(left), 'cell')} of this study"
        if left and self._wait:
            self._progress.note(f"waiting for {others} under way in other processes")
        elif left:
            self._progress.note(f"{others} left to other processes, which work on them")
            self._pending = []

    def _submit(self, task: Task) -> None:
        job = {
            "key": task.cell.key,
            "attempts": task.attempts,
            "path": str(self._store.path.absolute()),
            "mark": str(self._mark.path),
            "study": (self._store.path / FILE).read_text(encoding="utf-8"),
            "machine": self._machine,
            "code": pack_code([task.cell.network]),  # of this call, as in csham.study.engines.local
            "directory": str(Path.cwd()),
        }
        self._running[self._run_cell.remote(job, self._board)] = task

    def _handle_ended(self, seconds: float, *, stopping: bool = False) -> None:
        if not self._running:
            return
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        for reference in ended:
            task = self._running.pop(reference)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.TaskCancelledError:
                continue
            except self._ray.exceptions.RayTaskError:
                if not stopping:
                    raise  # what a cell fails with travels as an answer: this is a fault of ours
                continue
            except self._ray.exceptions.RayError as err:
                if not stopping:
                    self._record_death(task, err)
                continue
            self._handle(task, answer, stopping=stopping)

    def _handle(self, task: Task, answer: dict[str, Any], *, stopping: bool) -> None:
        job = self._jobs.pop(task.cell.key, None)
        if job is not None:
            self._progress.idle(job)
        if answer["event"] == "fatal":
            raise UserError(f"{answer['message']} (on {answer['host']})")
        if answer["event"] == "interrupted" or answer["record"] is None:
            if not stopping:
                self._pending.append(task)  # another process has it, or stopped it
            return
        record = answer["record"]
        if answer["run"] is not None and not self._take_in(task, record, answer["run"]):
            return
        self._progress.ended(_NO_BAR if job is None else job, record)

    def _take_in(self, task: Task, record: dict[str, Any], run: bytes) -> bool:
        """Put the run of a node that does not see the study's folder into it."""
        claim = self._store.claim(task.cell.key, task.attempts)
        if claim is None:
            return False
        with claim:
            try:
                self._store.add_run(task.cell.name, partial(_unpack, run))
            except DamagedRunError as err:
                self._progress.note(f"{task.cell.label} came back damaged and is trained again: {err}")
                self._pending.append(task)
                return False
            self._store.append(record)
        return True

    def _record_death(self, task: Task, err: Exception) -> None:
        """Write down that a cell failed, which its process cannot."""
        message = f"its process died, {_RETRIES + 1} times: {first_line_of(err)}"
        error = {"type": "WorkerDied", "message": message, "traceback": str(err)}
        record = record_death(self._store, task, error, self._started)
        if record is not None:
            self._progress.ended(self._jobs.pop(task.cell.key, _NO_BAR), record)

    def _show(self) -> None:
        """Tell what the cells said since the last time."""
        try:
            said = self._ray.get(self._board.take.remote(), timeout=10.0)
        except self._ray.exceptions.RayError:
            return  # the board was on a node that is gone; the cells go on
        labels = {task.cell.key: task.cell.label for task in self._running.values()}
        if self._limit is not None:
            self._limit.need(said["need"])
        for text in said["notes"]:
            self._progress.note(text)
        for key, (where, fraction, rate) in said["cells"].items():
            if key in labels:
                free = next(n for n in range(len(self._jobs) + 1) if n not in self._jobs.values())
                self._progress.cell(self._jobs.setdefault(key, free), labels[key], where, fraction, rate)


class _Head:
    """The process that keeps a cluster together, without which nothing is given out and nothing comes back."""

    def __init__(self, ray: ModuleType) -> None:
        self.address = ""
        self._heard = 0.0
        with contextlib.suppress(Exception):  # a driver that is not of the cluster itself may not know it
            self.address = str(ray.get_runtime_context().gcs_address)
        self._reachable = self._answers()

    def seconds_of_silence(self) -> float:
        """Return for how long it has not answered; 0 where it never could be asked."""
        if not self._reachable or self._answers():
            return 0.0
        return time.monotonic() - self._heard

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except (OSError, ValueError):
            return False
        self._heard = time.monotonic()
        return True


class _Board:
    """An actor on which cells write how far they are."""

    def __init__(self) -> None:
        self._cells: dict[str, tuple[str, float, float]] = {}
        self._notes: list[str] = []
        self._need = 0.0

    def cell(self, key: str, where: str, fraction: float, rate: float) -> None:
        """Tell how far a cell is."""
        self._cells[key] = where, fraction, rate

    def note(self, text: str) -> None:
        """Say a line."""
        self._notes.append(text)

    def need(self, seconds: float) -> None:
        """Tell how long a cell would take to stop and save."""
        self._need = max(self._need, seconds)

    def take(self) -> dict[str, Any]:
        """Return what was said since the last call."""
        said = {"cells": self._cells, "notes": self._notes, "need": self._need}
        self._cells, self._notes = {}, []
        return said


class _BoardProgress(QuietProgress):
    """Progress of a run, written on the board."""

    def __init__(self, board: Any, key: str) -> None:
        self._board, self._key = board, key
        self._total, self._last, self._needed = 1, 0.0, 0.0

    def note(self, text: str) -> None:
        self._board.note.remote(text)

    def start(self, done: int, total: int) -> None:
        self._total = total

    def need(self, seconds: float) -> None:
        if seconds > self._needed:
            self._needed = seconds
            self._board.need.remote(seconds)

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LOOKS:
            self._last = time.monotonic()
            self._board.cell.remote(self._key, where, done / self._total, images_per_s)


def _run_cell(job: dict[str, Any], board: Any) -> dict[str, Any]:
    """Run one cell in this process, one of Ray's; errors travel as words, which every process can read."""
    # Imported here: the driver needs no PyTorch.
    from csham.study.cell import CellRunner  # noqa: PLC0415

    progress = _BoardProgress(board, job["key"])
    progress._board.cell.remote(job["key"], f"starting on {socket.gethostname()}", 0.0, 0.0)
    try:
        with contextlib.suppress(OSError):  # what the study says of its data may be relative to it
            os.chdir(job["directory"])
        store, own = _store_of(job)
        # Run folders tell the command that began them, which was the study's.
        sys.argv = shlex.split(store.study.command.partition(" && ")[0]) or ["csham"]
        unpack_code(job["code"])
        runner = CellRunner(store, job["machine"], progress)
        record = _known(store, job) if own else None
        record = record or runner.run(job["key"], job["attempts"])
    except InterruptedRunError:
        return {"event": "interrupted"}
    except UserError as err:
        return {"event": "fatal", "message": str(err), "host": socket.gethostname()}
    run = _pack(store.path / record["run"]) if own and record is not None else None
    return {"event": "ended", "record": record, "run": run}


def _store_of(job: Mapping[str, Any]) -> tuple[Store, bool]:
    """Return the study's folder, or one of this node's own where it is out of sight."""
    if Path(job["mark"]).exists():
        return Store(job["path"]), False
    digest = uuid.uuid5(uuid.NAMESPACE_URL, job["path"] + job["study"]).hex
    path = cache_root() / "studies" / digest
    store = Store(path)
    with store.changing_study():
        if not store.exists:
            write_atomically(path / FILE, lambda file: file.write(job["study"].encode()))
    return store, True


def _known(store: Store, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a cell that this node brought to an end, but whose answer got lost."""
    record = store.by_key().get(job["key"])
    return record if is_over(record, job["attempts"]) else None


def _pack(folder: Path) -> bytes | None:
    """Return a run folder as a tar archive; None where a cell failed before it had one."""
    if not folder.is_dir():
        return None
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, arcname=".")
    return content.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
