"""One cell of a study: started, gone on with where it was cut off, or taken over from a run trained by hand."""

from __future__ import annotations

import errno
import gc
import itertools
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from csham.backbones.zoo import weights_path
from csham.data import PackedDataset, prepare
from csham.data.checks import check_images
from csham.data.dataset import describe_data
from csham.data.sources import check_there
from csham.errors import UserError
from csham.files import sha256_of
from csham.study.grid import Cell, Network, Study, cell_key, differing_setting
from csham.study.record import DamagedRunError, describe_error, done_record, failed_record, now
from csham.study.store import FAILED_MARK, Store
from csham.training.interrupt import InterruptedRunError, StopRequest
from csham.training.loop import newest_checkpoint, resume_in_turns, train_in_turns
from csham.training.machine import choose, choose_device
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.turns import Turns, drain

__all__ = ["CellRunner", "NoRoomError", "adopt_runs", "open_data"]

_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NoRoomError(Exception):
    """A cell found no memory beside the others of its process; it goes on from its last checkpoint with fewer."""


class CellRunner:
    """Runs cells of one study in this process, opening the images once.

    Args:
        store: The study's folder.
        machine: Settings of :data:`csham.study.grid.MACHINE_FIELDS` that were asked for.
        progress: Told what happens.
        stop: Asks for a stop in place of signals, which are left to the caller; None leaves them to each run.
        shares_process: True if several cells take turns in this process.

    Attributes:
        must_restart: True if a cell failed in a way that may have left this process unfit for others.
    """

    def __init__(
        self,
        store: Store,
        machine: Mapping[str, Any] | None = None,
        progress: QuietProgress | None = None,
        stop: StopRequest | None = None,
        *,
        shares_process: bool = False,
    ) -> None:
        self.store = store
        self._stop, self._shares_process = stop, shares_process
        self.must_restart = False
        self._machine = dict(machine or {})
        self._progress = progress or QuietProgress()
        self._study = store.study

    def run(self, key: str, attempts: int = 0) -> dict[str, Any] | None:
        """Claim a cell, run it and append its record.

        Args:
            key: Of the cell.
            attempts: Number of its attempts that have failed.

        Returns:
            The record; None where another process has the cell, or has been through with it.

        Raises:
            UserError: Nothing in this study can be trained here: the data has changed, or is tested on what it trains
                on; the device cannot do the precision; the disk is full.
            InterruptedRunError: A signal stopped the run, which can go on.
        """
        record = drain(self.run_in_turns(key, attempts))
        gc.collect()
        return record

    def run_in_turns(
        self,
        key: str,
        attempts: int = 0,
        progress: QuietProgress | None = None,
        company: Callable[[], bool] = lambda: False,
    ) -> Turns[dict[str, Any] | None]:
        """Run a cell as :meth:`run` does, and give way after each of its steps.

        Args:
            key: Of the cell.
            attempts: Number of its attempts that have failed.
            progress: Told what happens in this cell; None is the runner's.
            company: Tells if other cells are under way in this process.

        Raises:
            NoRoomError: In company, its memory did not suffice.
        """
        cell = self._cell(key)
        claim = self.store.claim(key, attempts)
        if claim is None:
            return None
        with claim:
            dataset = self.dataset
            record = yield from self._attempt(cell, dataset, attempts, progress or self._progress, company)
            self.store.append(record)
        return record

    @cached_property
    def dataset(self) -> PackedDataset:
        """The images, checked to be the study's."""
        study = self._study
        dataset = open_data(study, self._machine, self._progress)
        config = replace(study.cells()[0].config, **self._machine)
        parts = dataset.split(config.seed, config.validation)
        choose(config, len(parts.train))
        for note in check_images(dataset, parts, allow_leaks=config.allow_leaks):
            self._progress.note(note)
        return dataset

    def _cell(self, key: str) -> Cell:
        for _ in range(2):
            cell = next((cell for cell in self._study.cells() if cell.key == key), None)
            if cell is not None:
                return cell
            self._study = self.store.study  # extended since it was read
        raise UserError(f"{self.store.path}: study.yaml has no cell {key} any more. Give the command again.")

    def _attempt(
        self, cell: Cell, dataset: PackedDataset, attempts: int, progress: QuietProgress, company: Callable[[], bool]
    ) -> Turns[dict[str, Any]]:
        started = now()
        try:
            return (
                yield from _run_cell(
                    self.store,
                    cell,
                    study=self._study,
                    dataset=dataset,
                    machine=self._machine,
                    progress=progress,
                    attempts=attempts,
                    stop=self._stop,
                    shares_process=self._shares_process,
                )
            )
        except InterruptedRunError:
            raise
        except Exception as err:
            if isinstance(err, OSError) and err.errno in _FATAL:
                raise UserError(f"{err.filename or self.store.path}: {err.strerror}. The study goes on later.") from err
            memory = isinstance(err, _OUT_OF_MEMORY) or isinstance(err.__cause__, _OUT_OF_MEMORY)
            if memory and company():
                raise NoRoomError(f"{cell.label} found no memory beside the others") from None
            suspect = memory or not isinstance(err, UserError)
            if suspect and company():
                _check_device(self._machine)  # a fault of it is every cell's
            else:
                self.must_restart = suspect
            error = describe_error(err, self._study)
            if not isinstance(err, _OtherSettingsError):
                self.store.mark_failed(cell, error)
            return failed_record(
                self._study, cell, error, run=f"runs/{cell.name}", started=started, attempts=attempts + 1
            )


def open_data(study: Study, machine: Mapping[str, Any], progress: QuietProgress) -> PackedDataset:
    """Open a study's images.

    Raises:
        UserError: They are not what the study began with.
    """
    given = {"max_bad": machine["max_bad"]} if "max_bad" in machine else {}
    check_there(study.data.source, "the study", "Say where they are now: csham compare DATA --study DIR.")
    dataset = prepare(study.data.source, image_size=study.data.image_size, progress=progress.preparing, **given)
    if describe_data(dataset)["fingerprint"] != study.data.fingerprint:
        raise UserError(
            f"the images of {study.data.source} are not those that the study began with ({study.data.images} images, "
            f"{study.data.classes} classes, fingerprint {study.data.fingerprint[:12]}...; now {len(dataset)} images, "
            f"{len(dataset.classes)} classes). Put them back, or begin another study: --study OTHER."
        )
    return dataset


def _check_device(machine: Mapping[str, Any]) -> None:
    """Let the fault of a device that does not answer any more end this process, and with it all cells in it."""
    kind = choose_device(machine.get("device", "auto")).partition(":")[0]
    if kind != "cpu":
        try:
            torch.get_device_module(kind).synchronize()
        except Exception:
            traceback.print_exc()  # the log
            raise SystemExit(1) from None


def _run_cell(
    store: Store,
    cell: Cell,
    *,
    study: Study,
    dataset: PackedDataset,
    machine: Mapping[str, Any],
    progress: QuietProgress,
    attempts: int,
    stop: StopRequest | None,
    shares_process: bool,
) -> Turns[dict[str, Any]]:
    """Bring one cell to its end, from wherever an earlier process left it; its claim must be held.

    Returns:
        The record, which has not been appended.
    """
    given: dict[str, Any] = {"dataset": dataset, "progress": progress, "stop": stop}
    folder = RunFolder(store.run_folder(cell.name))

    def record() -> dict[str, Any]:
        return done_record(study, cell, folder, dataset.classes, run=f"runs/{cell.name}", attempts=attempts + 1)

    state = _state(folder, cell, study, progress)
    if state == "finished":
        try:
            finished = record()
        except DamagedRunError as err:
            progress.note(f"{cell.label} is measured again: {err}")
            folder.summary_file.unlink()
            state = "damaged"
        else:
            folder.settle()
            progress.note(f"{folder.path} is finished and becomes the record of {cell.label}")
            return finished
    if state != "new":
        try:
            yield from resume_in_turns(folder.path, **given, **_machine_for(folder, cell, machine))
            return record()
        except UserError as err:
            if state != "damaged":
                raise
            _set_aside(folder, cell, err, progress)
    config = replace(cell.config, **machine)
    yield from train_in_turns(config, run=folder.path, shares_process=shares_process, **given)
    return record()


def adopt_runs(store: Store, runs: Path, say: Callable[[str], None]) -> list[Cell]:
    """Copy the finished runs among the folders in ``runs`` that are cells of the study, and write their records.

    A run is a cell if every setting that changes its result and the content of its data are the cell's; where it lies,
    what its data is called and on what machine it ran do not matter.

    Args:
        store: The study's folder.
        runs: A folder of run folders, or one run folder.
        say: Told of each run what became of it.

    Returns:
        The cells that were not done and are now.

    Raises:
        UserError: There is no run folder.
    """
    study = store.study
    cells = {cell.key: cell for cell in study.cells()}
    adopted = []
    for path in _run_folders(runs):
        folder = RunFolder(path)
        if not folder.finished:
            say(f"{path} is not finished: left out")
            continue
        try:
            cell = cells.get(_key_of_run(folder))
        except (UserError, OSError) as err:
            say(f"{path} is left out: {err}")
            continue
        if cell is None:
            say(f"{path} is left out: {_why_no_cell(folder, study)}")
            continue
        try:
            taken = _adopt(store, cell, folder)
        except DamagedRunError as err:
            say(f"{path} is left out: {err}")
            continue
        say(f"{path} is {cell.label} now" if taken else f"{path} is left out: {cell.label} is done or under way")
        adopted += [cell] * taken
    return adopted


class _OtherSettingsError(UserError):
    """The run folder belongs to another run."""


def _state(folder: RunFolder, cell: Cell, study: Study, progress: QuietProgress) -> str:
    """Return ``"new"``, ``"begun"`` or ``"finished"``, after removing what an attempt that is over left."""
    if not folder.path.exists() or not any(folder.path.iterdir()):
        return "new"
    try:
        config = folder.read_config()
        fingerprint = _data_of(folder)["fingerprint"]
    except UserError as err:
        if folder.finished:
            return _set_aside(folder, cell, err, progress)
        if not folder.last.parent.is_dir():
            raise _OtherSettingsError(
                f"{folder.path} cannot be told to be a run of this study: {err} Move it away, then csham compare "
                f"--study {folder.path.parent.parent} --retry-failed."
            ) from err
        return _begin_again(folder, f"{cell.label} starts again: {err}", progress)
    if cell_key(config, fingerprint, study.weights_sha256) != cell_key(
        cell.config, study.data.fingerprint, study.weights_sha256
    ):
        different = differing_setting(config.to_dict(), cell.config) or "its data is another"
        raise _OtherSettingsError(
            f"{folder.path} holds a run of other settings or data ({different}). Move it away, then csham compare "
            f"--study {folder.path.parent.parent} --retry-failed."
        )
    if folder.finished:
        return "finished"
    if (folder.path / FAILED_MARK).exists():
        return _begin_again(folder, f"{cell.label} starts again after it failed", progress)
    return "begun"


def _set_aside(folder: RunFolder, cell: Cell, why: UserError, progress: QuietProgress) -> str:
    """Give a finished run that is damaged another name, so that its cell begins anew and nothing of it is lost."""
    numbers = itertools.count(1)
    aside = next(path for n in numbers if not (path := folder.path.with_name(f"{cell.name}.damaged-{n}")).exists())
    folder.path.rename(aside)
    progress.note(f"{cell.label} is trained again: {why} The damaged folder is {aside} now")
    return "new"


def _begin_again(folder: RunFolder, why: str, progress: QuietProgress) -> str:
    progress.note(why)
    shutil.rmtree(folder.path)
    return "new"


def _machine_for(folder: RunFolder, cell: Cell, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the machine settings that a run goes on with: its own, where this machine has them."""
    before = folder.read_config()
    here = choose_device(machine.get("device", "auto"))
    moved = here.partition(":")[0] != before.device.partition(":")[0]
    device = {"device": here} if moved else {}
    return {**device, **machine, "precision": cell.config.precision}


def _run_folders(runs: Path) -> list[Path]:
    folders = [runs] if (runs / "config.yaml").is_file() else sorted(file.parent for file in runs.glob("*/config.yaml"))
    if not folders:
        raise UserError(f"--adopt {runs}: there is no run folder in it.")
    return folders


def _why_no_cell(folder: RunFolder, study: Study) -> str:
    """Say of a run that is no cell if only the code of the user's own in it is another."""
    config = folder.read_config()
    ours = Network(**config.network_settings)
    twins = [n for n in study.networks if n.without_code() == ours.without_code()]
    if twins and ours not in twins:
        kind = "attention" if twins[-1].base == ours.base else "backbone"
        return f"the code of its {kind} is another than the study's: {ours.label}, and {twins[-1].label} here"
    return "its settings or its data are those of no cell"


def _key_of_run(folder: RunFolder) -> str:
    """Return the key that a run has as a cell of a study of its data."""
    config = folder.read_config()
    weights = None if config.weights_file is None else sha256_of(weights_path(config.weights_file))
    return cell_key(config, _data_of(folder)["fingerprint"], weights)


def _data_of(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's checkpoints say of its images; of one that is not finished, such as it can go on from."""
    _, content, _ = newest_checkpoint(folder, ("data",)) if folder.finished else newest_checkpoint(folder)
    data: dict[str, Any] = content["data"]
    return data


def _adopt(store: Store, cell: Cell, source: RunFolder) -> bool:
    record = store.by_key().get(cell.key)
    attempts = 0 if record is None else int(record.get("attempts", 1))
    claim = store.claim(cell.key, attempts)
    if claim is None:
        return False
    with claim:
        study, classes, run = store.study, _data_of(source)["classes"], f"runs/{cell.name}"
        record = done_record(study, cell, source, classes, run=run, attempts=attempts + 1)
        store.add_run(cell.name, lambda place: shutil.copytree(source.path, place, dirs_exist_ok=True))
        store.append(record)
    return True
