"""The epochs' numbers as TensorBoard events, in the run folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EventWriter", "curves"]


def curves(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.csv by their curves: ``val_top1`` becomes ``top1/val``."""
    named = {}
    for name, value in row.items():
        if name == "epoch" or value is None:
            continue
        part, _, measure = name.partition("_")
        named[f"{measure}/{part}" if part in ("train", "val", "test") else f"run/{name}"] = value
    return named


class EventWriter:
    """Writes one point per epoch and curve; epochs that an earlier, killed process wrote are taken back.

    Not torch's writer, whose thread prints the traceback of a full disk before the loop can say which file it is.

    Args:
        folder: Folder of the event files.
        epochs_done: Epochs that are in the history already.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
        self._purge_step = epochs_done + 1

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of metrics.csv.

        Raises:
            OSError: With ``filename`` set.
        """
        # Imported here: the first step need not wait for it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in curves(row).items()]
        events = [Event(step=row["epoch"], summary=Summary(value=values))]
        if not self._path.exists():
            start = {"step": self._purge_step, "session_log": SessionLog(status=SessionLog.START)}
            events = [Event(file_version="brain.Event:2"), Event(**start), *events]
        try:
            with self._path.open("ab") as file:
                records = RecordWriter(file)
                for event in events:
                    event.wall_time = time.time()
                    records.write(event.SerializeToString())
        except OSError as err:
            err.filename = str(self._path)
            raise

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Do nothing: each epoch's events are closed."""
