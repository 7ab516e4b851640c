"""Files that a study leaves: ``records.jsonl``, one line for each finished or failed cell, and claims of running cells.

A record is appended with one write under a lock and is on the disk when :meth:`Store.append` returns. A process that
was killed while it wrote leaves at most a torn last line. That, and a line that was changed since it was written
(:mod:`csham.study.record`), readers leave out and the next writer moves aside. Claims are locks of the operating
system, which it frees when a process ends, however it ends. Nothing here imports PyTorch.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import filelock

from csham.errors import UserError
from csham.files import (
    SUMS,
    make_folders,
    new_folder,
    read_plain,
    read_sums,
    remove_leftovers,
    sha256_of,
    write_atomically,
)
from csham.study.grid import Cell, Study
from csham.study.record import FORMAT, DamagedRunError, Line, is_over, read_line, written_line
from csham.study.study_file import FILE, read_study, write_study
from csham.words import counted, path_word

__all__ = ["FAILED_MARK", "CellState", "Claim", "Store", "cell_states", "writing_in"]

FAILED_MARK = "failed.json"
"""In the run folder of an attempt that failed."""

_WAIT_SECONDS = 60.0
_MARK = "mark-"
_TOLD = 5  # lines of a file one by one; others are counted


class Store:
    """The folder of a study.

    Args:
        path: The folder.
        note: Told what was found damaged; by default a warning.
    """

    def __init__(self, path: Path | str, note: Callable[[str], None] | None = None) -> None:
        self.path = Path(path)
        self._note = note or _warn
        self._noted: set[str] = set()
        self._known: dict[Path, dict[bytes, Line]] = {}  # lines by their files, which are read for every cell

    @property
    def study(self) -> Study:
        """Study that ``study.yaml`` holds now."""
        return read_study(self.path)

    @property
    def records_file(self) -> Path:
        """The records."""
        return self.path / "records.jsonl"

    @property
    def repeats_file(self) -> Path:
        """Records of second runs of cells, which other machines made; there may be none."""
        return self.path / "repeats.jsonl"

    @property
    def exists(self) -> bool:
        """True if there is a study in the folder."""
        return (self.path / FILE).is_file()

    def run_folder(self, name: str) -> Path:
        """Return the path of a cell's run folder."""
        return self.path / "runs" / name

    def logs(self) -> Path:
        """Return the folder of what workers say, which exists."""
        with writing_in(self.path):
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        return self.path / "logs"

    def changing_study(self) -> AbstractContextManager[None]:
        """Hold the lock under which ``study.yaml`` is read, changed and written."""
        return self._holding("study", _WAIT_SECONDS)

    def concluding(self) -> AbstractContextManager[None]:
        """Hold the lock under which costs and report are made: of several processes that end together, one by one."""
        return self._holding("conclusion", -1)

    def write_study(self, study: Study) -> None:
        """Write ``study.yaml``; call it within :meth:`changing_study`."""
        with writing_in(self.path):
            write_study(self.path, study)

    def records(self) -> list[dict[str, Any]]:
        """Return the records, the last one of each cell, or of those done if any is, in the order of the first ones.

        A line that another process is writing at this moment is left out. A line that is no record, or not the one
        that was written, is told and left out too: its cell counts as not done.
        """
        return [line.record for line in self.lines() if line.record is not None]

    def lines(self) -> list[Line]:
        """Return the lines of the :meth:`records`."""
        lines: dict[str, Line] = {}
        others: dict[int, str] = {}
        for number, (record, line) in self._believed(self.records_file, self._way_on).items():
            known = lines.setdefault(record["key"], line).record or {}
            if record["status"] == known["status"] == "done" and record["result"] != known["result"]:
                values = f"top-1 {record['result']['top1']:.2f}, and {known['result']['top1']:.2f} before"
                cell = f"{record['label']}, seed {record['seed']}"
                others[number] = f"is another finished run of {cell}, with {values}: the last counts."
            if record["status"] == "done" or known["status"] != "done":
                lines[record["key"]] = line
        self._tell(self.records_file, others)
        return list(lines.values())

    @property
    def _way_on(self) -> str:
        """Say what becomes of a line of the records that is left out."""
        if self.exists:
            call = f"csham compare --study {path_word(self.path)}"
            return f": {call} takes its cell from its run folder, or trains it again"
        return ". Copy the file again; if that does not help, csham compare --study DIR mends the study it comes from"

    def unchecked(self) -> str:
        """Say which lines are from before they had sums; nothing if none is."""
        number = sum(line.record is not None and not line.checked for line in self._lines(self.records_file))
        lines = f"{counted(number, 'line')} of {self.records_file}"
        return f"{lines} cannot be checked for changes, being from before lines had sums" if number else ""

    def cut_off(self) -> list[Path]:
        """Return the files whose last line has no end: it is being written at this moment, or a copy is not whole."""
        files = (self.records_file, self.repeats_file)
        return [file for file in files if (rest := self._split(file)[-1]) and read_line(rest).torn]

    def by_key(self) -> dict[str, dict[str, Any]]:
        """Return the records by the keys of their cells."""
        return {record["key"]: record for record in self.records()}

    def append(self, record: Mapping[str, Any], *, checked: bool = True) -> None:
        """Add a record; it is on the disk afterwards, whole or not at all.

        Args:
            record: The record.
            checked: False for one of another store whose line there has no sum; it gets none here.

        Raises:
            UserError: The folder is not writable, or the disk is full.
        """
        self._append(self.records_file, written_line(record, checked=checked))

    def repeats(self) -> list[dict[str, Any]]:
        """Return the second runs of cells, oldest first; a changed line is told and left out."""
        return [line.record for line in self.repeat_lines() if line.record is not None]

    def repeat_lines(self) -> list[Line]:
        """Return the lines of the :meth:`repeats`."""
        return [line for _, line in self._believed(self.repeats_file).values()]

    def append_repeat(self, record: Mapping[str, Any], *, checked: bool = True) -> None:
        """Keep a second run of a cell that is done; ``checked`` is as for :meth:`append`."""
        self._append(self.repeats_file, written_line(record, checked=checked))

    def mark_failed(self, cell: Cell, error: Mapping[str, str]) -> None:
        """Leave word in a cell's run folder that this attempt is over, so that a later one begins anew."""
        folder = self.run_folder(cell.name)
        if (folder / "config.yaml").is_file():
            text = json.dumps(dict(error), indent=2) + "\n"
            with writing_in(self.path):
                write_atomically(folder / FAILED_MARK, lambda file: file.write(text.encode()))

    def add_run(self, name: str, fill: Callable[[Path], Any]) -> None:
        """Make a run folder appear, whole, in place of one that may be there; its cell's claim must be held.

        Args:
            name: Of the cell.
            fill: Writes the run into the folder it is given.

        Raises:
            DamagedRunError: A file of it is not as the run wrote it.
            UserError: The folder is not writable, or the disk is full.
        """
        with writing_in(self.path), new_folder(self.run_folder(name), replace=True) as folder:
            fill(folder)
            try:
                sums = read_sums(folder) or {}
            except ValueError as err:
                raise DamagedRunError(f"its {SUMS} was changed since it was written: {err}.") from err
            for file, digests in sums.items():
                if not (folder / file).is_file() or sha256_of(folder / file) not in digests:
                    raise DamagedRunError(f"its {file} was changed since it was written.")

    def repair(self) -> None:
        """Move lines that are not believed to a file beside, and tell it, and how many lines cannot be checked."""
        for file in (self.records_file, self.repeats_file):
            if file.is_file():
                with writing_in(self.path), self._lock("records", _WAIT_SECONDS):
                    self._repair(file)
        if unchecked := self.unchecked():
            self._note_once(f"{unchecked}.")

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed while they wrote left in the folder."""
        runs = self.path / "runs"
        places = [self.path / name for name in (FILE, "costs.json", "report")]
        # .NAME.REST.tmp lies beside NAME
        places += [path.with_name(path.name[1:].rsplit(".", 2)[0]) for path in runs.glob(".*.*.tmp")]
        for place in places:
            remove_leftovers(place)
        for file in (self.path / "locks").glob(f"{_MARK}*.lock"):
            lock = self._lock(file.stem)
            if self._acquired(lock):
                file.unlink(missing_ok=True)
                lock.release()

    def claim(self, key: str, attempts: int = 0) -> Claim | None:
        """Take a cell for this process, until the claim is released or the process ends.

        Args:
            key: Of the cell.
            attempts: Number of its attempts that had failed when the caller decided to make another.

        Returns:
            None where another process works on it, or has finished or failed it in the meantime.
        """
        lock = self._lock(key)
        if not self._acquired(lock):
            return None
        # Looked at only now: the last holder of the claim may have written its record a moment ago.
        if is_over(self.by_key().get(key), attempts):
            lock.release()
            return None
        return Claim(lock)

    def is_claimed(self, key: str) -> bool:
        """Return True if some process works on a cell at this moment."""
        lock = self._lock(key)
        if not self._acquired(lock):
            return True
        lock.release()
        return False

    def mark(self) -> Claim:
        """Make a file in the folder that nobody removes while the claim is held."""
        lock = self._lock(f"{_MARK}{uuid.uuid4().hex}")
        with writing_in(self.path):
            lock.acquire()
        return Claim(lock)

    @contextmanager
    def _holding(self, name: str, seconds: float) -> Iterator[None]:
        lock = self._lock(name, seconds)
        with writing_in(self.path):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _acquired(self, lock: filelock.BaseFileLock) -> bool:
        with writing_in(self.path):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                return False
        return True

    def _lock(self, name: str, seconds: float = 0) -> filelock.BaseFileLock:
        folder = self.path / "locks"
        with writing_in(self.path):
            make_folders(folder)  # the first of all that a study has
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        # Not shared within the process: two claims of one cell must exclude each other there too.
        return filelock.FileLock(folder / f"{name}.lock", timeout=seconds)

    def _believed(self, file: Path, way_on: str = "") -> dict[int, tuple[dict[str, Any], Line]]:
        """Return the records of a file with their lines, by number; other lines are told, and what becomes of them.

        Raises:
            UserError: The file cannot be read, or a later version wrote a line.
        """
        lines = dict(enumerate(self._lines(file), start=1))
        faults = {number: f"{line.fault}, and is left out{way_on}." for number, line in lines.items() if line.fault}
        self._tell(file, faults)
        believed = {number: (line.record, line) for number, line in lines.items() if line.record is not None}
        for number, (record, _) in believed.items():
            if not 1 <= record["format"] <= FORMAT:
                raise UserError(
                    f"{file}, line {number} has format {record['format']!r}; this version of csham reads up to "
                    f"{FORMAT}. Use the version that wrote it."
                )
        return believed

    def _lines(self, file: Path) -> list[Line]:
        """Read the lines that are complete."""
        *lines, rest = self._split(file)
        known, now = self._known.get(file, {}), {}
        for line in [*lines, rest]:
            now[line] = known.get(line) or read_line(line)
        self._known[file] = now
        # Only its newline is missing from a line that can be read; what cannot is being written or was torn.
        return [now[line] for line in [*lines, *([] if now[rest].torn else [rest])]]

    def _split(self, file: Path) -> list[bytes]:
        """Read the lines without their ends, and last what stands behind the last end."""
        try:
            return read_plain(file).split(b"\n")
        except FileNotFoundError:
            return [b""]
        except OSError as err:
            raise UserError(f"cannot read {file}: {err.strerror}.") from err

    def _append(self, file: Path, line: bytes) -> None:
        """Add a line, whole or not at all."""
        with writing_in(self.path), self._lock("records", _WAIT_SECONDS):
            self._repair(file)
            if not file.exists():
                write_atomically(file, lambda _: None)  # so that its name is on the disk too
            handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                before = os.fstat(handle).st_size
                try:
                    if os.write(handle, line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
                    os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, before)
                    raise
            finally:
                os.close(handle)

    def _repair(self, file: Path) -> None:
        """See :meth:`repair`; the lock is held, so no process is writing."""
        *lines, rest = self._split(file)
        lines = [line + b"\n" for line in lines] + [rest] * bool(rest)
        faults = {number: read for number, line in enumerate(lines) if (read := read_line(line)).record is None}
        if faults:
            kind = "torn" if all(read.torn for read in faults.values()) else "changed"
            aside = self.path / f"{file.stem}.{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            write_atomically(aside, lambda out: out.writelines(lines[number] for number in faults))
            cell = ", and its cell is taken from its run folder, or trained again" if file == self.records_file else ""
            told = {}
            for number, read in faults.items():
                cut = rest and number == len(lines) - 1
                what = "was being written by a process that was killed" if cut else read.fault
                told[number + 1] = f"{what}. It is in {aside.name} now{cell}."
            self._tell(file, told)
        if faults or rest:
            good = [line.removesuffix(b"\n") + b"\n" for number, line in enumerate(lines) if number not in faults]
            write_atomically(file, lambda out: out.writelines(good))

    def _tell(self, file: Path, lines: Mapping[int, str]) -> None:
        """Tell something of lines of a file, by number; of many it is told of the first."""
        new = [self._note_once(f"{file}, line {number} {text}") for number, text in islice(lines.items(), _TOLD)]
        if any(new) and len(lines) > _TOLD:
            self._note(f"{file}: so it is with {counted(len(lines) - _TOLD, 'more line')}.")

    def _note_once(self, text: str) -> bool:
        if text in self._noted:
            return False
        self._noted.add(text)
        self._note(text)
        return True


class Claim:
    """A cell that this process works on; a context manager.

    Attributes:
        path: The file that is locked.
    """

    def __init__(self, lock: filelock.BaseFileLock) -> None:
        self.path = Path(lock.lock_file).absolute()
        self._lock = lock

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


@dataclass(frozen=True)
class CellState:
    """State of a cell: how far it is.

    Attributes:
        cell: The cell.
        state: ``"done"``, ``"failed"``, ``"cut off"`` or ``"to do"``.
        epochs_done: Of a cell that is cut off: epochs that need not be trained again.
    """

    cell: Cell
    state: str
    epochs_done: int = 0

    @property
    def sentence(self) -> str:
        """Sentence to tell people."""
        if self.state != "cut off":
            return self.state
        if self.epochs_done >= self.cell.config.epochs:
            return "cut off at its end"
        return f"cut off in epoch {self.epochs_done + 1} of {self.cell.config.epochs}"


def cell_states(store: Store, cells: Iterable[Cell]) -> list[CellState]:
    """Look at records and run folders."""
    records = store.by_key() if store.exists else {}
    return [_cell_state(store, cell, records.get(cell.key, {}).get("status")) for cell in cells]


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into a study into a :class:`UserError`."""
    try:
        yield
    except filelock.Timeout as err:
        raise UserError(
            f"another process has held {err.lock_file} for {_WAIT_SECONDS:.0f} s. If none runs any more, the file "
            "system does not free locks: keep the study on a local disk."
        ) from err
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {folder} is full. Free some space, then give the same command again."
            ) from err
        what = err.filename or folder
        raise UserError(f"cannot write {what}: {err.strerror or err}. Another place: --study DIR.") from err


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _cell_state(store: Store, cell: Cell, status: str | None) -> CellState:
    if status is not None:
        return CellState(cell, status)
    folder = store.run_folder(cell.name)
    if not (folder / "config.yaml").is_file():
        return CellState(cell, "to do")
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return CellState(cell, "cut off", sum(1 for _ in csv.DictReader(file)))
    except (OSError, csv.Error, UnicodeDecodeError):
        return CellState(cell, "cut off")
