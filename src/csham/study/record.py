"""One line of ``records.jsonl``: made of a run folder, written, and believed only as it was written.

Nothing in it says where on this machine things lie. A line of format 2 has a sum, by which a change is seen; one of
format 1 is from before there were sums, and its numbers are compared with each other as far as they say things twice.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from csham.backbones.spec import NETWORK_FIELDS
from csham.errors import UserError
from csham.files import has_right_sum, parse_json, summed
from csham.study.grid import Cell, Network, Study, cell_key
from csham.training.config import BEFORE, TrainConfig
from csham.training.course import last_epoch
from csham.training.metrics import METRICS
from csham.training.run_folder import RunFolder

__all__ = [
    "FORMAT",
    "DamagedRunError",
    "Line",
    "describe_error",
    "done_record",
    "failed_record",
    "is_number",
    "is_over",
    "now",
    "read_line",
    "without_places",
    "words_without_places",
    "written_line",
]

FORMAT = 2
"""Of a record."""

_WITHOUT_SUM = 1


class DamagedRunError(UserError):
    """A finished run folder is not as its run left it."""


_TIME = "%Y-%m-%dT%H:%M:%S%z"


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

    Raises:
        DamagedRunError: A file of the run cannot be read, or contradicts another.
    """
    try:
        record = _done(study, cell, folder, classes, run, attempts)
    except UserError as err:
        raise DamagedRunError(str(err)) from err
    if wrong := _misshapen(record) or _contradiction(record):
        raise DamagedRunError(f"the files of {folder.path} contradict each other: {wrong}")
    return record


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


def is_over(record: Mapping[str, Any] | None, attempts: int) -> bool:
    """Return True if a record ends a cell of which so many attempts had failed before."""
    return record is not None and (record["status"] == "done" or record.get("attempts", 1) > attempts)


def now() -> str:
    """Return the time, as records say it."""
    return time.strftime(_TIME)


def without_places(path: str) -> str:
    """Return a path as it is if it is relative, and its last part if it is not."""
    return PurePath(path).name if PurePath(path).is_absolute() else path


def is_number(value: Any) -> TypeGuard[float]:
    """Return True for a number that is finite and no more than a float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Line:
    """One line of ``records.jsonl``, as it is read.

    Attributes:
        record: The record, of any shape if its format is a later one; None where the line is not believed.
        checked: True if a sum says that it is as it was written.
        fault: Why it is not believed.
        torn: True if it is no record at all, as what a process that was killed while it wrote leaves.
    """

    record: dict[str, Any] | None
    checked: bool = False
    fault: str = ""
    torn: bool = False


def written_line(record: Mapping[str, Any], *, checked: bool = True) -> bytes:
    """Return the line of a record.

    Args:
        record: The record.
        checked: True for a line with a sum; False for one that came without, of which a sum now would say nothing.

    Raises:
        ValueError: It is none.
    """
    values = _finite(record)
    line = (json.dumps(summed(values) if checked else values, allow_nan=False) + "\n").encode()
    if read_line(line).record is None:
        raise ValueError(f"not a record: {line[:200]!r}")
    return line


def read_line(line: bytes) -> Line:
    """Read a line, which anyone may have written."""
    try:
        values = parse_json(line)
    except ValueError:
        return Line(None, fault="is not a record", torn=True)
    right = has_right_sum(values) if isinstance(values, dict) else None
    if right is False or (right is None and _needs_sum(values)):
        return Line(None, fault=f"{_whose(values)}was changed since it was written")
    if right and type(values.get("format")) is int and values["format"] > FORMAT:
        return Line(values, checked=True)
    if _misshapen(values):
        return Line(None, fault="is not a record", torn=True)
    values.pop("sum", None)
    if not right and (wrong := _contradiction(values)):
        return Line(None, fault=f"{_whose(values)}was changed since it was written: {wrong}")
    return Line(values, bool(right))


def _needs_sum(values: Any) -> bool:
    return isinstance(values, dict) and type(values.get("format")) is int and values["format"] > _WITHOUT_SUM


def _whose(values: Mapping[str, Any]) -> str:
    """Say of which cell a line seems to be, with a space behind."""
    label, seed = values.get("label"), values.get("seed")
    return f"({label[:200]}, seed {seed}) " if isinstance(label, str) and isinstance(seed, int) else ""


def words_without_places(command: str) -> str:
    """Return a command line with the last parts of its absolute paths."""
    try:
        return shlex.join(map(without_places, shlex.split(command)))
    except ValueError:
        return ""


def _done(
    study: Study, cell: Cell, folder: RunFolder, classes: Iterable[str], run: str, attempts: int
) -> dict[str, Any]:
    environment, result = folder.read_json("environment.json"), folder.read_summary()
    result.pop("run", None)
    result["data"] = without_places(study.data.source)
    finished = time.strftime(_TIME, time.localtime(folder.summary_file.stat().st_mtime))
    return {
        **_head(study, cell, "done"),
        "config": _config(study, folder.read_config().to_dict()),
        "classes": list(classes),
        "result": result,
        "history": folder.read_metrics(),
        "per_class": _per_class(folder.read_confusion()),
        "environment": _environment(environment),
        "run": run,
        "started": environment.get("started"),
        "finished": finished,
        "attempts": attempts,
    }


def _head(study: Study, cell: Cell, status: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "key": cell.key,
        "status": status,
        "label": cell.network.label,
        "network": cell.network.to_dict(),
        "seed": cell.seed,
        "data": {name: value for name, value in vars(study.data).items() if name != "source"},
    }


def _environment(values: dict[str, Any]) -> dict[str, Any]:
    values = values | {"command": words_without_places(str(values.get("command", "")))}
    code = values.get("attention")
    if isinstance(code, dict) and code.get("file"):
        values["attention"] = code | {"file": without_places(str(code["file"]))}
    return values


def _config(study: Study, values: dict[str, Any]) -> dict[str, Any]:
    """Say data and weights as the user did."""
    weights = values["weights_file"]
    return values | {
        "data": without_places(study.data.source),
        "weights_file": None if weights is None else without_places(str(study.settings.get("weights_file") or weights)),
    }


def _per_class(confusion: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    return {"correct": [row[number] for number, row in enumerate(confusion)], "total": [*map(sum, confusion)]}


def _shortened(text: str, study: Study) -> str:
    """Take the machine's folders out of a text."""
    if PurePath(study.data.source).is_absolute():
        text = text.replace(study.data.source, without_places(study.data.source))
    places = {str(Path(entry).absolute()) for entry in sys.path if entry} | {str(Path.cwd())}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"[/\\]", "", text)
    home = os.path.expanduser("~")  # noqa: PTH111  which is "~" where there is none
    return text.replace(home, "~") if len(home) > 1 else text


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


_MAPPINGS = ("network", "data", "config", "result", "environment", "error", "per_class")
_KNOWN = {*_MAPPINGS, "format", "key", "status", "label", "seed", "classes", "history"}
_KNOWN |= {"run", "started", "finished", "attempts"}


def _misshapen(record: Any) -> str | None:
    """Name the first part of a record that cannot be; what is not there is nothing wrong."""
    if not isinstance(record, dict) or record.get("status") not in ("done", "failed"):
        return "it has no status"
    holds = {
        **{name: isinstance(record.get(name), str) for name in ("key", "label")},
        **{name: type(record.get(name)) is int for name in ("format", "seed")},
        "attempts": type(record.get("attempts", 1)) is int,
        **{name: isinstance(record.get(name, {}), dict) for name in _MAPPINGS},
        "classes": _all_are(record.get("classes", []), str),
        "history": _all_are(record.get("history", []), dict),
    }
    if wrong := [name for name, right in holds.items() if not right]:
        return f"its {wrong[0]} is {str(record.get(wrong[0]))[:80]!r}"
    if record["status"] == "done" and not is_number(top1 := record.get("result", {}).get("top1")):
        return f"the top1 of its result is {str(top1)[:80]!r}"
    within = (("result", "validation_chosen"), ("result", "machine"), ("environment", "versions"))
    for part, name in within:
        if not isinstance(record.get(part, {}).get(name) or {}, dict):
            return f"the {name} of its {part} is {str(record[part][name])[:80]!r}"
    counts: dict[str, Any] = record.get("per_class", {})
    if counts and not (
        set(counts) == {"correct", "total"}
        and all(_all_are(numbers, int) for numbers in counts.values())
        and len(counts["correct"]) == len(counts["total"]) == len(record.get("classes", counts["total"]))
        and all(0 <= right <= images < 2**53 for right, images in zip(counts["correct"], counts["total"], strict=True))
    ):
        return "its counts per class cannot be"
    return None


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and type(value) is not bool for value in values)


def _contradiction(record: Mapping[str, Any]) -> str | None:
    """Find what a record says twice and differently: settings, accuracies and counts, history and its summary."""
    if unknown := set(record) - _KNOWN:
        return f"it has the unknown {min(unknown)[:60]!r}"
    if record["status"] != "done":
        return _other_settings(record)
    result = record.get("result", {})
    for name, said, made, of in [*_of_counts(record), *_of_history(record)]:
        if is_number(said) and not math.isclose(said, made, rel_tol=2e-5, abs_tol=_ROUNDED.get(name, 2e-4)):
            return f"{name} is {said:.6g}, and {of} {made:.6g}"
    for name, metric in METRICS.items():
        for numbers in (result, result.get("validation_chosen") or {}):
            value = numbers.get(name)
            if metric.unit == "%" and is_number(value) and not 0 <= value <= 100:
                return f"{name} is {value:.6g}%"
    return _other_settings(record)


def _may_stop_early(record: Mapping[str, Any]) -> bool:
    """Return True if the planned epochs need not be those that were done."""
    config = record.get("config", {})
    return config.get("patience") is not None or bool(config.get("continued"))


# What results are rounded to, where it is less than their history and their counts give.
_ROUNDED = {"images_per_s": 6e-3, "seconds": 6e-4}

_Fact = tuple[str, Any, float, str]


def _of_counts(record: Mapping[str, Any]) -> Iterator[_Fact]:
    """Give what the counts per class say too: a name, what the result says, what the counts make."""
    result, counts = record.get("result", {}), record.get("per_class")
    if not counts or not sum(counts["total"]):
        return
    of = "its counts per class make"
    shares = [100 * right / images for right, images in zip(counts["correct"], counts["total"], strict=True) if images]
    yield "top1", result.get("top1"), 100 * sum(counts["correct"]) / sum(counts["total"]), of
    for name in ("macro_top1", "recall"):
        yield name, result.get(name), math.fsum(shares) / len(shares), of
    yield "images", result.get("images"), sum(counts["total"]), of
    yield "classes", result.get("classes"), len(counts["total"]), of
    yield "absent_classes", result.get("absent_classes"), len(counts["total"]) - len(shares), of


def _of_history(record: Mapping[str, Any]) -> Iterator[_Fact]:
    """Give what the history says too."""
    result, history = record.get("result", {}), record.get("history")
    if not history:
        return
    chosen, last = result.get("validation_chosen") or {}, len(history)
    for place, row in enumerate(history, start=1):
        yield "the epoch of a row of its history", row.get("epoch"), place, "its place is"
    for values in (record.get("config", {}), result):
        if values is result or not _may_stop_early(record):
            yield "epochs", values.get("epochs"), last, "its history has"
    seconds, rates, validated = (_numbers(history, name) for name in ("seconds", "images_per_s", "val_top1"))
    if seconds:
        yield "seconds", result.get("seconds"), math.fsum(seconds), "its history makes"
    if rates and min(rates) > 0:
        rate = last / math.fsum(1 / rate for rate in rates)
        yield "images_per_s", result.get("images_per_s"), rate, "its history makes"
    if validated and chosen.get("chosen_by") == "validation top-1":
        yield "validation_top1", chosen.get("validation_top1"), max(validated), "the best of its history is"
        yield "the chosen epoch", chosen.get("epoch"), validated.index(max(validated)) + 1, "the best of its history is"
    if chosen.get("epoch") == last:
        for name in ("loss", "top1", "macro_top1", "top5", "recall"):
            if is_number(result.get(name)):
                yield f"{name} of the chosen epoch", chosen.get(name), result[name], "of the last, the same, is"


def _numbers(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return a column of a history, if it is whole."""
    values = [row.get(name) for row in history]
    return [float(value) for value in values if value is not None] if all(map(is_number, values)) else []


def _other_settings(record: Mapping[str, Any]) -> str | None:
    """Find settings that are told twice and differently, or are not those of the key."""
    config, network, result = (record.get(name) or {} for name in ("config", "network", "result"))
    if not (config and network):
        return None
    said = [(name, config.get(name), network.get(name)) for name in NETWORK_FIELDS]
    said += [(name, config.get(name), result[name]) for name in (*NETWORK_FIELDS, "recipe") if name in result]
    if not _may_stop_early(record):
        said.append(("epochs", config.get("epochs"), result.get("epochs", config.get("epochs"))))
    said += [
        ("seed", config.get("seed"), record["seed"]),
        ("seed", config.get("seed"), result.get("seed", record["seed"])),
    ]
    for name, one, other in said:
        if one != other:
            return f"{name} is both {one!r} and {other!r}"
    try:
        settings = TrainConfig(**(BEFORE | config))
        label, instead_of = Network.from_dict(network).label, network.get("instead_of")
    except (UserError, TypeError) as err:
        return f"its settings cannot be: {err}"
    if label != record["label"]:
        return f"its network is {label}"
    return _other_end(settings, record) or _other_key(settings, record, instead_of)


def _other_end(settings: TrainConfig, record: Mapping[str, Any]) -> str | None:
    history = record.get("history")
    if not history or not _may_stop_early(record):
        return None
    end = last_epoch(settings, _numbers(history, "val_top1"))
    return None if len(history) == end else f"its history has {len(history)} epochs, and its patience makes {end}"


def _other_key(settings: TrainConfig, record: Mapping[str, Any], instead_of: str | None) -> str | None:
    if settings.weights_file is None:  # whose content is in the key too
        key = cell_key(settings, str(record.get("data", {}).get("fingerprint")), None, instead_of)
        if key != record["key"]:
            return "its settings and data are not those of its key"
    return None
