"""Material of a report: everything that a study's folder says, read without changing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.study.costs import COSTS_FILE, read_costs
from csham.study.findings import FailedCell, MissingCell, Results
from csham.study.reading import StudyReading, read_folder
from csham.words import counted, some

__all__ = ["Costs", "Material", "read_material"]


@dataclass(frozen=True)
class Costs:
    """Contents of costs.json.

    Attributes:
        rows: By the network's label; without those that could not be measured.
        machine: Machine that they were measured on.
        notes: Sentences on what is wrong with them.
    """

    rows: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, Any]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Material(StudyReading):
    """A study as its folder has it, with its costs.

    Attributes:
        path: The folder.
        costs: Of its networks.
    """

    path: Path
    costs: Costs

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Labels of the networks that have finished runs, under the backbone that they are compared on."""
        base = {one.label: one.backbone for one in self.results.comparisons}
        families: dict[str, list[str]] = {}
        for row in self.results.networks:
            if row.n:
                families.setdefault(base.get(row.label, row.backbone), []).append(row.label)
        return families

    def histories(self, label: str) -> list[Sequence[Mapping[str, Any]]]:
        """Return the epochs of each finished run of a network."""
        runs = (self.results.runs.get((label, seed), {}) for seed in self.results.seeds)
        return [run["history"] for run in runs if run.get("history")]


def read_material(path: Path) -> Material:
    """Read a study's folder.

    Raises:
        UserError: It is not a study, or a file of it cannot be understood.
    """
    read = read_folder(path)
    costs = _read_costs(path, [network.label for network in read.study.networks])
    warnings = [*_unfinished(len(read.study.cells()), read.results), *read.warnings, *costs.notes]
    return Material(**vars(read) | {"warnings": warnings}, path=path, costs=costs)


def _read_costs(path: Path, labels: Sequence[str]) -> Costs:
    missing = "so the tables and pictures have what the runs themselves say, and no latency."
    try:
        content = read_costs(path)
    except UserError as err:
        return Costs({}, {}, [f"{err}, {missing}"])
    if content is None:
        return Costs({}, {}, [f"Costs have not been measured side by side yet (there is no {COSTS_FILE}), {missing}"])
    rows = {row["network"]: row for row in content["costs"]}
    failed = [f"Costs of {name} are incomplete: {row['failed']}" for name, row in rows.items() if row.get("failed")]
    unknown = [label for label in labels if label not in rows]
    notes = [f"Costs of {_listed(unknown)} have not been measured."] if unknown else []
    if not content.get("finished", True):
        notes.append("The measuring of costs was interrupted; they are medians over fewer rounds.")
    return Costs(rows, content.get("machine", {}), notes + failed)


def _unfinished(cells: int, results: Results) -> list[str]:
    notes = []
    if results.missing:
        has = "has" if len(results.missing) == 1 else "have"
        notes.append(
            f"{counted(len(results.missing), 'run')} of {cells} {has} no record yet: {_cells(results.missing)}."
        )
    if results.failed:
        notes.append(
            f"{counted(len(results.failed), 'run')} failed: {_cells(results.failed)}; why is under “Every run”."
        )
    if notes:
        notes.append("Comparisons use the seeds that both networks have finished.")
    return notes


def _cells(cells: Sequence[MissingCell | FailedCell]) -> str:
    return _listed(f"{cell.label}, seed {cell.seed}" for cell in cells)


def _listed(names: Iterable[str]) -> str:
    return some(names, 6, "; ")
