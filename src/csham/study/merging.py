"""Records of one study that several machines made, each in a store of its own, put together in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import stdev
from typing import Any

from csham.errors import UserError
from csham.study.grid import Cell, Study
from csham.study.machines import machine_of
from csham.study.setup import check_records
from csham.study.statistics import binomial_se
from csham.study.store import Store

__all__ = ["merge_records", "open_stores"]

Record = Mapping[str, Any]

_ENOUGH = 3  # runs that a deviation is estimated from
_FAR = 3.0  # standard deviations of a difference of two runs: farther apart, one of them is not what it says


def merge_records(store: Store, places: Iterable[Path], note: Callable[[str], None]) -> None:
    """Take the finished cells of other stores of the same study into a store; nothing of the others changes.

    A cell that is done here stays as it is, whatever its result there. Where the other run is another one, its record
    is kept beside (:meth:`csham.study.store.Store.repeats`): two runs of one cell tell what the machine does. They
    should differ no more than two seeds do, or be the same where one kind of machine made both; else a note says so.

    Args:
        store: The study's folder.
        places: Folders of other stores, or their ``records.jsonl``.
        note: Told what became of each store's cells, a line each.

    Raises:
        UserError: As :func:`open_stores`; nothing is taken over then.
    """
    study = store.study
    cells = {cell.key: cell for cell in study.cells()}
    for other in open_stores(study, store, places, note):
        _merge(store, other, cells, note)


def open_stores(study: Study, store: Store, places: Iterable[Path], note: Callable[[str], None]) -> list[Store]:
    """Open the stores that are to be merged, all of them before anything is taken over or written.

    Args:
        study: Study that they are to be of, which need not be written yet.
        store: Its folder.
        places: As for :func:`merge_records`.
        note: Told what is found damaged in them, and left out.

    Raises:
        UserError: There are no records, or they are of another study.
    """
    opened = []
    for place in places:
        other = Store(place.parent if place.name == store.records_file.name else place, note)
        if not other.records_file.is_file():
            raise UserError(f"--merge {place}: there are no records, no {store.records_file.name}. Name a study.")
        if other.records_file.resolve() == store.records_file.resolve():
            raise UserError(f"--merge {place} is the study itself. Name another machine's.")
        for file in other.cut_off():
            note(f"{file}: its last line is cut off, and is left out. Is the copy complete?")
        advice = "Only stores of one study can be put together."
        way_in = "; more --seeds, --backbones or --attentions take them in"
        for text in check_records(study, other.records(), other.path, advice, way_in):
            note(f"{other.path}: {text}")
        other.repeats()  # of a later version, they are refused too
        opened.append(other)
    return opened


def _merge(store: Store, other: Store, cells: Mapping[str, Cell], note: Callable[[str], None]) -> None:
    taken = known = repeated = busy = 0
    for line in [*other.lines(), *other.repeat_lines()]:
        record = line.record
        if record is None or record["status"] != "done" or record["key"] not in cells:
            continue
        cell = cells[record["key"]]
        ours = store.by_key().get(cell.key)
        if ours is None or ours["status"] != "done":
            claim = store.claim(cell.key, 0 if ours is None else int(ours.get("attempts", 1)))
            if claim is None:
                busy += 1
                continue
            with claim:
                store.append(record, checked=line.checked)
            taken += 1
        elif any(_same_run(record, one) for one in (ours, *store.repeats())):
            known += 1
        else:
            store.append_repeat(record, checked=line.checked)
            repeated += 1
            if why := _disagreement(ours, record, store.records()):
                note(f"{cell.label}: {why}")
    counts = {
        f"{taken} taken over": taken,
        f"{known} known already": known,
        f"{repeated} done on both sides, of which this study's count": repeated,
        f"{busy} under way here": busy,
    }
    note(f"{other.path}: {', '.join(text for text, count in counts.items() if count) or 'no finished cells'}")


def _same_run(one: Record, other: Record) -> bool:
    return all(one.get(name) == other.get(name) for name in ("key", "started", "finished", "result"))


def _disagreement(ours: Record, theirs: Record, records: Iterable[Record]) -> str:
    """Say why two runs of one cell cannot both be right; nothing if they can."""
    here, there = ours["result"]["top1"], theirs["result"]["top1"]
    values = f"{here:.2f} here and {there:.2f} there"
    if machine_of(ours) == machine_of(theirs) and _setup(ours) == _setup(theirs):
        return f"top-1 is {values}, though both ran on the same kind of machine" if here != there else ""
    tolerance = _FAR * math.sqrt(2) * _deviation(ours, records)
    if abs(here - there) <= tolerance:
        return ""
    return f"top-1 is {values}, farther apart ({tolerance:.2f}) than two seeds would be. One of the runs is not sound"


def _setup(record: Record) -> tuple[Any, ...]:
    """Return what decides on the last bits of a run beside its machine."""
    environment, config = record.get("environment") or {}, record.get("config") or {}
    keys = ("processor", "threads", "processes", "commit", "versions")
    return (*(environment.get(key) for key in keys), *(config.get(key) for key in ("compile", "channels_last")))


def _deviation(record: Record, records: Iterable[Record]) -> float:
    """Estimate how far runs of different seeds lie from each other, from the test part's size if there is one seed."""
    result = record["result"]
    least = binomial_se(result["top1"], int(result.get("images") or 100))
    tops = [one["result"]["top1"] for one in records if one["status"] == "done" and one["label"] == record["label"]]
    return max(least, stdev(tops)) if len(tops) >= _ENOUGH else least
