"""A study's folder, read without changing it: its records, what they amount to, what to know before relying on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csham.study.findings import Results
from csham.study.grid import Study
from csham.study.results import assess
from csham.study.store import Store
from csham.study.study_file import FILE, is_edited

__all__ = ["StudyReading", "read_folder"]


@dataclass(frozen=True)
class StudyReading:
    """A study as its folder has it.

    Attributes:
        study: Contents of study.yaml.
        records: Those of the study's cells, in their order.
        results: Results that they amount to.
        warnings: Sentences on what a reader should know before relying on them.
        unchecked: Sentence on what cannot be checked for changes; perhaps empty.
    """

    study: Study
    records: Sequence[Mapping[str, Any]]
    results: Results
    warnings: Sequence[str]
    unchecked: str


def read_folder(path: Path) -> StudyReading:
    """Read a study's folder.

    Raises:
        UserError: It is not a study, or its plan or its records cannot be understood.
    """
    notes: list[str] = []
    store = Store(path, note=notes.append)
    study = store.study
    keys = [cell.key for cell in study.cells()]
    by_key = store.by_key()
    records = [by_key[key] for key in keys if key in by_key]
    results = assess(study, records, keys=keys, repeats=store.repeats())
    if others := len(by_key) - len(records):
        what, are = ("record belongs", "is") if others == 1 else ("records belong", "are")
        notes.append(f"{others} {what} to other settings than study.yaml's and {are} left out.")
    if is_edited(path):
        notes.append(f"{FILE} was edited or damaged since csham wrote it; it counts as it is now.")
    return StudyReading(study, records, results, [*results.warnings, *notes], store.unchecked())
