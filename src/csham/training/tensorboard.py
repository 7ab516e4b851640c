"""The epochs' numbers as TensorBoard events, in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EventWriter"]


class EventWriter:
    """Writes one point per epoch and curve; epochs that an earlier, killed process wrote are taken back.

    Args:
        folder: Folder of the event files.
        epochs_done: Epochs that are in the history already.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._folder, self._purge_step = folder, epochs_done + 1
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of metrics.csv; ``val_top1`` becomes ``top1/val``."""
        if self._writer is None:
            # Imported here: it takes seconds, which the first step need not wait for.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        for name, value in row.items():
            if name == "epoch" or value is None:
                continue
            part, _, measure = name.partition("_")
            tag = f"{measure}/{part}" if part in ("train", "val", "test") else f"run/{name}"
            self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()
