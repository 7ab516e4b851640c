"""The run folder: what one run leaves behind, and the only thing that later commands need.

A folder appears complete: it is written beside its place and renamed, with a first checkpoint in it, so that
a run killed at any later moment can be resumed. ``summary.json`` is written last and marks a run as finished.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.files import write_atomically
from csham.training.config import BEFORE, TrainConfig, read_settings, resolve

__all__ = ["RunFolder", "is_main_process"]


def is_main_process() -> bool:
    """Return True if this process writes and speaks; known from the launcher's variable, before PyTorch is imported."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """Every setting, resolved."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch that the validation part chose."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """Weights for others to load: those of the last epoch, in runs of before the file said so the chosen ones."""
        return self.path / "model.safetensors"

    @property
    def summary_file(self) -> Path:
        """The final numbers."""
        return self.path / "summary.json"

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return self.summary_file.is_file()

    def check_free(self) -> None:
        """Refuse a folder that holds something already, or that cannot be made; in the main process alone.

        Raises:
            UserError: The folder is a run, or anything else that is not empty; or its place is not writable.
        """
        if not is_main_process():
            return  # the main process may have made the folder by now
        if self.config_file.exists():
            raise UserError(
                f"the run folder {self.path} exists already. csham train --resume {self.path} goes on with "
                "it; --run DIR starts another one."
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} exists and is not an empty folder. Name another with --run DIR.")

        place = next(parent for parent in self.path.absolute().parents if parent.exists())
        if not place.is_dir():
            raise UserError(f"cannot make {self.path}: {place} is a file. Name another place with --run DIR.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"cannot make {self.path}: {place} is not writable. Name another place with --run DIR.")

    def check_run(self) -> None:
        """Refuse a path that is not a run folder.

        Raises:
            UserError: Nothing is there, or something else.
        """
        if not self.path.exists():
            raise UserError(f"there is no run folder {self.path}.{self._neighbours()}")
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml.{self._neighbours()}")

    def _neighbours(self) -> str:
        parent = self.path if self.path.is_dir() else self.path.parent
        runs = sorted(str(file.parent) for file in parent.glob("*/config.yaml"))
        return f" Runs there: {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}." if runs else ""

    def create(self, config: TrainConfig, environment: Mapping[str, Any], save: Callable[[Path], None]) -> None:
        """Make the folder appear, complete.

        Args:
            config: The resolved settings.
            environment: Contents of environment.json.
            save: Writes the first checkpoint to the path it is given.
        """
        self.check_free()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = RunFolder(self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp"))
        try:
            temporary.last.parent.mkdir(parents=True)
            temporary.config_file.write_text(config.to_yaml(), encoding="utf-8")
            temporary.write_json("environment.json", environment)
            save(temporary.last)
            temporary.path.rename(self.path)  # an empty folder in its place is replaced
        finally:
            shutil.rmtree(temporary.path, ignore_errors=True)

    def read_config(self) -> TrainConfig:
        """Read the settings back; those that the run is older than are as they were in it."""
        self.check_run()
        return resolve({}, BEFORE | read_settings(self.config_file))

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv anew from the history, one row per epoch."""
        columns = list(history[0])
        rows = ([_cell(row.get(column)) for column in columns] for row in history)
        self._write_csv("metrics.csv", columns, rows)

    def write_confusion(self, classes: Sequence[str], counts: Iterable[Iterable[int]]) -> None:
        """Write confusion.csv: a row for each true class, a column for each class given."""
        rows = ([name, *row] for name, row in zip(classes, counts, strict=True))
        self._write_csv("confusion.csv", ["true class", *classes], rows)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read the final numbers of a finished run."""
        content: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        return content

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder, at once."""
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def _write_csv(self, name: str, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        self.write_text(name, text.getvalue())


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
