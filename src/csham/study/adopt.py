"""Run folders that were trained by hand, taken into a study whose cells they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from csham.errors import UserError
from csham.study.cell import key_of_run
from csham.study.grid import Cell
from csham.study.run_record import done_record
from csham.study.store import Store, writing_in
from csham.training.checkpoints import load_checkpoint
from csham.training.run_folder import RunFolder

__all__ = ["adopt_runs"]


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
            cell = cells.get(key_of_run(folder))
        except (UserError, OSError) as err:
            say(f"{path} is left out: {err}")
            continue
        if cell is None:
            say(f"{path} is left out: its settings or its data are those of no cell")
        elif _adopt(store, cell, folder):
            say(f"{path} is {cell.label} now")
            adopted.append(cell)
        else:
            say(f"{path} is left out: {cell.label} is done or under way")
    return adopted


def _run_folders(runs: Path) -> list[Path]:
    found = [runs] if (runs / "config.yaml").is_file() else sorted(file.parent for file in runs.glob("*/config.yaml"))
    if not found:
        raise UserError(f"--adopt {runs}: there is no run folder in it.")
    return found


def _adopt(store: Store, cell: Cell, source: RunFolder) -> bool:
    record = store.by_key().get(cell.key)
    attempts = 0 if record is None else int(record.get("attempts", 1))
    claim = store.claim(cell.key, attempts)
    if claim is None:
        return False
    with claim:
        place = store.run_folder(cell.name)
        if place.exists():
            shutil.rmtree(place)  # begun, or failed
        _copy(store, source.path, place)
        classes = load_checkpoint(source.last, ("data",))["data"]["classes"]
        study, run = store.study, f"runs/{cell.name}"
        store.append(done_record(study, cell, RunFolder(place), classes, run=run, attempts=attempts + 1))
    return True


def _copy(store: Store, source: Path, place: Path) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with writing_in(store.path):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(source, temporary)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
