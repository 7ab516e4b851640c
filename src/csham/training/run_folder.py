"""The run folder: what one run leaves behind, and the only thing that later commands need.

A folder appears complete: it is written beside its place and renamed, with a first checkpoint in it, so that
a run killed at any later moment can be resumed. ``summary.json`` is written last and marks a run as finished.
Every file that is read back is listed in ``csham.sha256`` (:mod:`csham.training.sums`), and none of them is for a user
to edit.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.files import new_folder, parse_json, sum_files
from csham.settings import names_of
from csham.training.config import BEFORE, TrainConfig, read_settings, resolve
from csham.training.sums import check_unchanged, is_main_process, write_listed

__all__ = ["RunFolder"]


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
        try:
            with new_folder(self.path) as place:
                temporary = RunFolder(place)
                temporary.last.parent.mkdir()
                temporary.write_text("config.yaml", config.to_yaml())
                temporary.write_json("environment.json", environment)
                save(temporary.last)
                sum_files(place, ("config.yaml", "environment.json", "checkpoints/last.ckpt"))
        except FileExistsError as err:
            raise UserError(
                f"another process has begun a run in {self.path} in the meantime. Name another folder with --run DIR."
            ) from err

    def read_config(self) -> TrainConfig:
        """Read the settings back; those that the run is older than are as they were in it."""
        self.check_run()
        checked = self._check(self.config_file)
        settings = read_settings(self.config_file)
        missing = [name for name in names_of(TrainConfig) if name not in settings and name not in BEFORE]
        if checked and missing:
            raise UserError(f"{self.config_file} lacks {', '.join(missing)}: a run's file has every setting.")
        return resolve({}, BEFORE | settings)

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
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder, at once; bytes of a path that are no UTF-8 as JSON and YAML escape them."""
        write_listed(self.path / name, lambda file: file.write(text.encode("utf-8", "backslashreplace")))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder back.

        Raises:
            UserError: It is missing or damaged, or was changed since it was written.
        """
        path = self._existing(name)
        self._check(path)
        try:
            content = parse_json(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("it holds no object of JSON")
        except ValueError as err:
            raise UserError(f"{path} is damaged: {str(err)[:200]}. {self._what_to_do(name)}") from err
        return content

    def read_summary(self) -> dict[str, Any]:
        """Read the final numbers of a finished run, and compare them with what else the folder says of them.

        Raises:
            UserError: They are missing, damaged, or contradict ``confusion.csv`` or ``metrics.csv``.
        """
        summary = self.read_json("summary.json")
        for name, holds in (("confusion.csv", self._is_of_confusion), ("metrics.csv", self._is_of_metrics)):
            try:
                if (self.path / name).is_file() and not holds(summary):
                    raise UserError(
                        f"{self.summary_file} and {self.path / name} contradict each other: one of them was changed "
                        f"since it was written. {self._what_to_do(name)}"
                    )
            except (TypeError, ValueError, LookupError, AttributeError) as err:
                if isinstance(err, UserError):
                    raise
                raise UserError(f"{self.summary_file} is damaged. {self._what_to_do('summary.json')}") from err
        return summary

    def read_metrics(self) -> list[dict[str, float | None]]:
        """Read metrics.csv back: a row for each epoch, None where nothing was measured.

        Raises:
            UserError: It is missing or damaged, or was changed since it was written.
        """
        header, *rows = self._read_csv("metrics.csv")
        try:
            return [{name: _number(name, cell) for name, cell in zip(header, row, strict=True)} for row in rows]
        except ValueError as err:
            raise UserError(
                f"{self.path / 'metrics.csv'} is damaged: {err}. {self._what_to_do('metrics.csv')}"
            ) from err

    def read_confusion(self) -> list[list[int]]:
        """Read confusion.csv back: a row of counts for each true class, as :meth:`write_confusion` got them.

        Raises:
            UserError: It is missing or damaged, or was changed since it was written.
        """
        header, *rows = self._read_csv("confusion.csv")
        try:
            counts = [[int(count) for count in row[1:]] for row in rows]
            if any(len(row) != len(rows) or min(row) < 0 for row in counts) or len(header) != len(rows) + 1:
                raise ValueError("it is no square of counts")
        except ValueError as err:
            path = self.path / "confusion.csv"
            raise UserError(f"{path} is damaged: {str(err)[:200]}. {self._what_to_do('confusion.csv')}") from err
        return counts

    def _is_of_confusion(self, summary: Mapping[str, Any]) -> bool:
        counts = self.read_confusion()
        images, right = sum(map(sum, counts)), [row[number] for number, row in enumerate(counts)]
        recalls = [100 * hits / sum(row) for hits, row in zip(right, counts, strict=True) if sum(row)]
        there = {"images": images, "top1": 100 * sum(right) / images, "macro_top1": sum(recalls) / len(recalls)}
        return all(_near(summary[name], value) for name, value in there.items() if name in summary)

    def _is_of_metrics(self, summary: Mapping[str, Any]) -> bool:
        rows, chosen = self.read_metrics(), summary.get("validation_chosen")
        if [row["epoch"] for row in rows] != list(range(1, summary["epochs"] + 1)):
            return False
        if not chosen or chosen["validation_top1"] is None:
            return True
        return _near(rows[chosen["epoch"] - 1]["val_top1"] or 0.0, chosen["validation_top1"])

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{path} is missing: {self.path} is not a whole run folder. {self._what_to_do(name)}")
        return path

    def _check(self, path: Path) -> bool:
        return check_unchanged(path, self._what_to_do(path.name))

    def _what_to_do(self, name: str) -> str:
        if name == "config.yaml":
            return (
                f"Put the old content back. Other settings make another run: csham train --config {self.config_file}."
            )
        if name in ("summary.json", "metrics.csv", "confusion.csv") and self.last.is_file():
            condition = f" once {self.summary_file} is removed" if self.summary_file.exists() else ""
            return f"csham train --resume {self.path} writes it anew{condition}."
        return "Put back a copy of it."

    def _read_csv(self, name: str) -> list[list[str]]:
        path = self._existing(name)
        self._check(path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, strict=True))
        except (ValueError, csv.Error) as err:
            raise UserError(f"{path} is damaged: {str(err)[:200]}. {self._what_to_do(name)}") from err
        if not rows:
            raise UserError(f"{path} is damaged: it is empty. {self._what_to_do(name)}")
        return rows

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


def _number(name: str, cell: str) -> float | None:
    """Read back what :func:`_cell` wrote."""
    if cell == "":
        return None
    return int(cell) if name == "epoch" else float(cell)


def _near(one: float, other: float) -> bool:
    """Compare two numbers of which each was rounded to a text."""
    return abs(one - other) < 1e-3
