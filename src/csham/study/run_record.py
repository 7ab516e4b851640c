"""From a run folder to one line of ``records.jsonl``, without a word about where on this machine things lie."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from csham.study.grid import Cell, Study
from csham.study.store import FORMAT
from csham.training.run_folder import RunFolder

__all__ = ["describe_error", "done_record", "failed_record", "now", "without_places"]

_TIME = "%Y-%m-%dT%H:%M:%S%z"
_INTEGERS = frozenset({"epoch"})


def done_record(
    study: Study, cell: Cell, folder: RunFolder, classes: Iterable[str], *, run: str, attempts: int
) -> dict[str, Any]:
    """Build the record of a finished run.

    Args:
        study: Study that the cell belongs to.
        cell: Cell that was trained.
        folder: The finished run.
        classes: Their names.
        run: The run folder, relative to the study's.
        attempts: Number of the attempt, from 1.
    """
    environment = json.loads((folder.path / "environment.json").read_text(encoding="utf-8"))
    result = folder.read_summary()
    result.pop("run", None)
    result["data"] = without_places(study.data.source)
    finished = time.strftime(_TIME, time.localtime(folder.summary_file.stat().st_mtime))
    return {
        **_head(study, cell, "done"),
        "config": _config(study, folder.read_config().to_dict()),
        "classes": list(classes),
        "result": result,
        "history": _history(folder.path / "metrics.csv"),
        "per_class": _per_class(folder.path / "confusion.csv"),
        "environment": environment | {"command": _words_without_places(environment.get("command", ""))},
        "run": run,
        "started": environment.get("started"),
        "finished": finished,
        "attempts": attempts,
    }


def failed_record(
    study: Study, cell: Cell, error: Mapping[str, str], *, run: str, started: str, attempts: int
) -> dict[str, Any]:
    """Build the record of a cell that cannot be trained as it is.

    Args:
        study: Study that the cell belongs to.
        cell: Cell that was tried.
        error: ``type``, ``message`` and ``traceback``.
        run: The run folder, relative to the study's.
        started: Time of the start, as :func:`now` says it.
        attempts: Number of the attempt, from 1.
    """
    return {
        **_head(study, cell, "failed"),
        "config": _config(study, cell.config.to_dict()),
        "run": run,
        "started": started,
        "finished": now(),
        "attempts": attempts,
        "error": dict(error),
    }


def describe_error(err: BaseException, study: Study) -> dict[str, str]:
    """Return what a record says of an exception; files are named as they are imported, not where they lie."""
    lines = "".join(traceback.format_exception(err))
    return {
        "type": type(err).__name__,
        "message": _shortened(str(err) or type(err).__name__, study),
        "traceback": _shortened(lines, study),
    }


def now() -> str:
    """Return the time, as records say it."""
    return time.strftime(_TIME)


def without_places(path: str) -> str:
    """Return a path as it is if it is relative, and its last part if it is not."""
    return PurePath(path).name if PurePath(path).is_absolute() else path


def _words_without_places(command: str) -> str:
    """Return a command line with the last parts of its absolute paths."""
    try:
        return shlex.join(map(without_places, shlex.split(command)))
    except ValueError:
        return ""


def _head(study: Study, cell: Cell, status: str) -> dict[str, Any]:
    data = study.data
    return {
        "format": FORMAT,
        "key": cell.key,
        "status": status,
        "label": cell.network.label,
        "network": cell.network.to_dict(),
        "seed": cell.seed,
        "data": {
            "classes": data.classes,
            "images": data.images,
            "image_size": data.image_size,
            "fingerprint": data.fingerprint,
        },
    }


def _config(study: Study, values: dict[str, Any]) -> dict[str, Any]:
    """Say data and weights as the user did."""
    weights = values["weights_file"]
    return values | {
        "data": without_places(study.data.source),
        "weights_file": None if weights is None else without_places(str(study.settings.get("weights_file") or weights)),
    }


def _history(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _number(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(name: str, text: str) -> float | None:
    if text == "":
        return None
    return int(text) if name in _INTEGERS else float(text)


def _per_class(path: Path) -> dict[str, list[int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[int(count) for count in row[1:]] for row in list(csv.reader(file))[1:]]
    return {"correct": [row[number] for number, row in enumerate(rows)], "total": [sum(row) for row in rows]}


def _shortened(text: str, study: Study) -> str:
    """Take the machine's folders out of a text."""
    if PurePath(study.data.source).is_absolute():
        text = text.replace(study.data.source, without_places(study.data.source))
    places = {str(Path(entry).absolute()) for entry in sys.path if entry} | {str(Path.cwd())}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"[/\\]", "", text)
    return text.replace(str(Path.home()), "~") if len(str(Path.home())) > 1 else text
