"""State of each cell of a study, found without importing PyTorch."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass

from csham.study.grid import Cell
from csham.study.store import Store

__all__ = ["CellState", "cell_states"]


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
    return [_state(store, cell, records.get(cell.key, {}).get("status")) for cell in cells]


def _state(store: Store, cell: Cell, status: str | None) -> CellState:
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
