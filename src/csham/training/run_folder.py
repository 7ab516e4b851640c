"""The run folder: what one run leaves behind, and the only thing that later commands need.

A folder appears complete: it is written beside its place and renamed, with a first checkpoint in it, so that
a run killed at any later moment can be resumed. ``summary.json`` is written last and marks a run as finished.
Every file that is read back is listed in ``csham.sha256`` (:mod:`csham.training.sums`), and none of them is for a user
to edit. A run ends with two sets of weights: those of the last epoch, which the headline and every study report, and
those of the epoch that its validation part chose; every command after training makes the same choice, :data:`DEFAULT`.
Nothing here imports PyTorch.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from csham.backbones.spec import NetworkSpec
from csham.errors import UserError, unknown_name
from csham.files import csv_text, new_folder, parse_json, remove_file, remove_leftovers, settle_sums, sum_files
from csham.settings import names_of
from csham.training.config import BEFORE, TrainConfig, read_settings, resolve
from csham.training.metrics import METRICS
from csham.training.sums import check_unchanged, is_main_process, write_listed

__all__ = ["CHOICES", "DEFAULT", "RunFolder", "RunWeights", "check_choice", "check_place", "weights_of_run"]

CHOICES = ("last", "best")

# A tenth of a small folder is some twenty images, and the best of thirty looks at twenty images is mostly luck.
DEFAULT = "last"

# Of a file of text, in bytes: a confusion matrix of 5,000 classes.
_LARGEST = 2**26


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

    def check_free(self, data: str | None = None) -> None:
        """Refuse a folder that holds something already, or where no run can be made; in the main process alone.

        Args:
            data: Images that it must not lie among.

        Raises:
            UserError: The folder is a run, or anything else that is not empty; or its place is not writable, or has no
                name that every library can open.
        """
        if not is_main_process():
            return  # the main process may have made the folder by now
        if self.config_file.exists():
            raise UserError(
                f"the run folder {self.path} exists already. csham train --resume {self.path} goes on with "
                "it; --run DIR starts another one."
            )
        elsewhere = "Name another place with --run DIR."
        try:
            os.fspath(self.path.absolute()).encode()
        except UnicodeEncodeError as err:  # safetensors opens no other
            raise UserError(f"the path of a run must be UTF-8, unlike {os.fspath(self.path)!a}. {elsewhere}") from err
        if data is not None:
            from csham.data.sources import check_apart  # noqa: PLC0415 - Pillow, which reading needs not

            check_apart(data, self.path, elsewhere)
        check_place(self.path, elsewhere)

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

    def reopen(self, config: TrainConfig) -> None:
        """Let a finished run go on with settings that add epochs to it.

        A crash in between leaves a run of the old settings, all of whose epochs are trained: the numbers are gone
        before there are settings that they are not of.
        """
        remove_file(self.summary_file)
        self.write_text("config.yaml", config.to_yaml())

    def read_config(self, *, to_build: bool = True) -> TrainConfig:
        """Read the settings back; those that the run is older than are as they were in it.

        Args:
            to_build: False if nothing is built of them, so that code of the user's own need not be there.

        Raises:
            UserError: The folder is no run, or the file was changed since it was written, or cannot be a run's.
        """
        self.check_run()
        checked = check_unchanged(self.config_file, self._what_to_do("config.yaml"))
        settings = read_settings(self.config_file)
        missing = [name for name in names_of(TrainConfig) if name not in settings and name not in BEFORE]
        if checked and missing:
            raise UserError(f"{self.config_file} lacks {', '.join(missing)}: a run's file has every setting.")
        try:
            config = resolve({}, BEFORE | settings)
            if to_build:
                NetworkSpec.check_names(config)
        except UserError as err:
            raise UserError(f"{self.config_file}: {err}") from err
        return config

    def write_metrics(
        self, history: Sequence[Mapping[str, Any]], before: Mapping[Path, Callable[[IO[bytes]], None]] | None = None
    ) -> None:
        """Write metrics.csv anew from the history, one row per epoch.

        Args:
            history: The rows.
            before: Checkpoints that get their names just before: what each path is written by.
        """
        columns = list(history[0])
        text = csv_text(columns, ([row.get(column) for column in columns] for row in history))
        write_listed({**(before or {}), self.path / "metrics.csv": lambda file: file.write(text.encode())})

    def write_confusion(self, classes: Sequence[str], counts: Iterable[Iterable[int]]) -> None:
        """Write confusion.csv: a row for each true class, a column for each class given."""
        rows = ([name, *row] for name, row in zip(classes, counts, strict=True))
        self.write_text("confusion.csv", csv_text(["true class", *classes], rows))

    def settle(self) -> None:
        """Leave one sum for each file of a finished run, and nothing temporary of a process that was killed."""
        if is_main_process():
            with suppress(OSError):  # the folder may be one to be read only, and two sums are right too
                remove_leftovers(self.summary_file)
                settle_sums(self.path)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder, at once; bytes of a path that are no UTF-8 as JSON and YAML escape them."""
        write_listed({self.path / name: lambda file: file.write(text.encode("utf-8", "backslashreplace"))})

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder back.

        Raises:
            UserError: It is missing or damaged, or was changed since it was written.
        """
        path = self._existing(name)
        try:
            content = parse_json(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("it holds no object of JSON")
        except ValueError as err:
            raise self._damaged(name, err) from err
        return content

    def read_summary(self) -> dict[str, Any]:
        """Read the final numbers of a finished run, and compare them with what else the folder says of them.

        Raises:
            UserError: They are missing, damaged, or contradict ``confusion.csv`` or ``metrics.csv``.
        """
        summary = self.read_json("summary.json")
        parts = [part for part in (summary, summary.get("validation_chosen")) if isinstance(part, dict)]
        wrong = [name for part in parts for name in METRICS if name in part and type(part[name]) not in (int, float)]
        if wrong:
            raise self._damaged("summary.json", f"{', '.join(wrong)} should be numbers")
        others = {"confusion.csv": self._is_of_confusion, "metrics.csv": self._is_of_metrics}
        for name in [name for name in others if (self.path / name).is_file()]:
            try:
                agree = others[name](summary)
            except (TypeError, LookupError, AttributeError) as err:
                raise self._damaged("summary.json", f"{type(err).__name__}: {err}") from err
            if not agree:
                raise UserError(
                    f"{self.summary_file} and {self.path / name} contradict each other: one of them was changed since "
                    f"it was written. {self._what_to_do(name)}"
                )
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
            raise self._damaged("metrics.csv", err) from err

    def read_confusion(self) -> list[list[int]]:
        """Read confusion.csv back: a row of counts for each true class, as :meth:`write_confusion` got them.

        Raises:
            UserError: It is missing or damaged, or was changed since it was written.
        """
        header, *rows = self._read_csv("confusion.csv")
        try:
            counts = [[int(count) for count in row[1:]] for row in rows]
        except ValueError as err:
            raise self._damaged("confusion.csv", err) from err
        square = len(header) == len(rows) + 1 and all(len(row) == len(rows) and min(row) >= 0 for row in counts)
        if not square or not sum(map(sum, counts)):
            raise self._damaged("confusion.csv", "it is no square of counts")
        return counts

    def _is_of_confusion(self, summary: Mapping[str, Any]) -> bool:
        counts = self.read_confusion()
        images, right = sum(map(sum, counts)), [row[number] for number, row in enumerate(counts)]
        recalls = [100 * hits / sum(row) for hits, row in zip(right, counts, strict=True) if sum(row)]
        there = {"images": images, "top1": 100 * sum(right) / images, "macro_top1": sum(recalls) / len(recalls)}
        return all(_near(summary[name], value) for name, value in there.items() if name in summary)

    def _is_of_metrics(self, summary: Mapping[str, Any]) -> bool:
        rows, chosen = self.read_metrics(), summary.get("validation_chosen")
        if len(rows) != summary["epochs"] or [row.get("epoch") for row in rows] != list(range(1, len(rows) + 1)):
            return False
        if not chosen or chosen["validation_top1"] is None:
            return True
        return _near(rows[chosen["epoch"] - 1].get("val_top1") or 0.0, chosen["validation_top1"])

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{path} is missing: {self.path} is not a whole run folder. {self._what_to_do(name)}")
        if path.stat().st_size > _LARGEST:
            raise self._damaged(name, f"no run writes more than {_LARGEST // 2**20} MiB")
        check_unchanged(path, self._what_to_do(name))
        return path

    def _damaged(self, name: str, problem: object) -> UserError:
        return UserError(f"{self.path / name} is damaged: {str(problem)[:200]}. {self._what_to_do(name)}")

    def _what_to_do(self, name: str) -> str:
        if name == "config.yaml":
            return "Put the old content back. Other settings make another run: csham train --config COPY --run DIR."
        if name in ("summary.json", "metrics.csv", "confusion.csv") and self.last.is_file():
            condition = f" once {self.summary_file} is removed" if self.summary_file.exists() else ""
            return f"csham train --resume {self.path} writes it anew{condition}."
        return "Put back a copy of it."

    def _read_csv(self, name: str) -> list[list[str]]:
        path = self._existing(name)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, strict=True))
        except (ValueError, csv.Error) as err:
            raise self._damaged(name, err) from err
        if not rows:
            raise self._damaged(name, "it is empty")
        return rows


def check_place(folder: Path, what_to_do: str) -> None:
    """Refuse a folder that holds something already, or that cannot be made.

    Args:
        folder: To be made.
        what_to_do: Ends the message.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder. {what_to_do}")
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UserError(f"cannot make {folder}: {place} is a file. {what_to_do}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot make {folder}: {place} is not writable. {what_to_do}")


@dataclass(frozen=True)
class RunWeights:
    """One set of a run's weights.

    Attributes:
        name: One of ``CHOICES``.
        epoch: After which it was, from 1; None if that is not known.
    """

    name: str
    epoch: int | None = None

    def __str__(self) -> str:
        """Say it where a number stands: ``last epoch (30)``, ``chosen (epoch 21)``."""
        if self.name == "last":
            return "last epoch" if self.epoch is None else f"last epoch ({self.epoch})"
        return "chosen by validation" if self.epoch is None else f"chosen (epoch {self.epoch})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as summaries and the metadata of files have it."""
        return {"weights": self.name, "epoch": self.epoch}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunWeights:
        """Read it back from a file that anyone may have written; of before it was said, a run left the best ones."""
        name, epoch = values.get("weights", "best"), values.get("epoch")
        if name not in CHOICES or not (epoch is None or (type(epoch) is int and epoch >= 0)):
            raise UserError(f"weights should be 'last' or 'best' of an epoch, got {ascii((name, epoch))[:80]}.")
        return cls(name, epoch)


def check_choice(name: str | None) -> None:
    """Refuse what is none of ``CHOICES``; None leaves the choice to ``DEFAULT``, or to what there is."""
    if name is not None and name not in CHOICES:
        raise unknown_name("weights", name, CHOICES)


def weights_of_run(folder: RunFolder, name: str) -> RunWeights:
    """Say of which epoch a run's last or best weights are.

    Args:
        folder: The run, finished or not.
        name: One of ``CHOICES``.
    """
    if name == "best":
        chosen = folder.read_summary().get("validation_chosen") if folder.finished else None
        return RunWeights(name, chosen.get("epoch") if isinstance(chosen, dict) else None)
    return RunWeights(name, len(folder.read_metrics()) if (folder.path / "metrics.csv").is_file() else None)


def _number(name: str, cell: str) -> float | None:
    """Read back a cell of metrics.csv."""
    if cell == "":
        return None
    return int(cell) if name == "epoch" else float(cell)


def _near(one: float, other: float) -> bool:
    """Compare two numbers of which each was rounded to a text."""
    return abs(one - other) < 1e-3
