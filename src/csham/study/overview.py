"""Several studies seen together: one table of their paired differences, with what is planned of each and what it costs.

A study that is planned and not begun is there too, with no run: what a reader must know first is how much of the plan
the findings stand on. Holm's correction goes over the comparisons of all studies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.study.costs import read_costs
from csham.study.findings import Results, plain_values
from csham.study.grid import Study
from csham.study.machines import machine_of
from csham.study.reading import read_folder
from csham.study.record import is_number
from csham.study.statistics import STORED
from csham.study.verdict import TableVerdict, verdict
from csham.words import counted

__all__ = ["CostRow", "Overview", "StudyPart", "StudyShare", "see_together"]

BASELINE = "none"
"""Name of the plain network among the variants."""
METRIC = "top-1"
"""Name of the metric: the last epoch's on the test part."""


@dataclass(frozen=True)
class StudyShare:
    """Part of an overview that one study is.

    Attributes:
        name: Of its folder.
        data: Name of the dataset, or of the folder of images.
        image_size: Side in pixels.
        epochs: Of each run.
        seeds: Seeds planned.
        networks: Networks planned.
        planned: Runs planned.
        done: Runs finished.
        failed: Runs that failed.
        machines: Kinds of machine that made them.
    """

    name: str
    data: str
    image_size: int
    epochs: int
    seeds: int
    networks: int
    planned: int
    done: int
    failed: int
    machines: tuple[str, ...]


@dataclass(frozen=True)
class CostRow:
    """Training time of a network beside the plain one's, on one kind of machine.

    Attributes:
        group: Study and backbone.
        variant: Attention.
        machine: Where it was measured.
        ratio: Its time over the plain network's.
        measured: True if both were measured side by side; False if the runs' own times are all there is.
    """

    group: str
    variant: str
    machine: str
    ratio: float
    measured: bool


@dataclass(frozen=True)
class Overview:
    """Several studies, seen together.

    Attributes:
        studies: A row each.
        verdict: On all their paired differences; None while no seed has both a network and its plain one.
        costs: Training times.
        notes: What a reader should know before relying on it.
    """

    studies: Sequence[StudyShare]
    verdict: TableVerdict | None
    costs: Sequence[CostRow]
    notes: Sequence[str]

    @property
    def progress(self) -> str:
        """The first sentence: how much of what is planned is done."""
        done, planned = sum(one.done for one in self.studies), sum(one.planned for one in self.studies)
        complete = sum(one.done == one.planned for one in self.studies)
        return (
            f"{done} of {planned} planned runs are done, of {len(self.studies)} studies, of which {complete} "
            f"{'is' if complete == 1 else 'are'} complete."
        )

    @property
    def headline(self) -> str:
        """What can be said, behind how much of the plan it stands on."""
        finding = self.verdict.headline if self.verdict else "Nothing can be compared yet."
        return f"{self.progress} {finding}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON's values."""
        content: dict[str, Any] = plain_values(
            {"headline": self.headline, "studies": self.studies, "costs": self.costs, "notes": self.notes}
        )
        return content | {"verdict": self.verdict.to_dict() if self.verdict else None}


def see_together(studies: Iterable[Path | str]) -> Overview:
    """Read the folders of several studies, and judge them as one table.

    Raises:
        UserError: One is no study, two have the same name, or a file cannot be understood.
    """
    parts = [StudyPart.read(Path(path)) for path in studies]
    if len({part.name for part in parts}) < len(parts):
        raise UserError(
            "two of the studies have folders of the same name. Rename one: their rows are told apart by it."
        )
    margins = {part.study.worthwhile for part in parts}
    if len(margins) > 1:
        raise UserError(
            f"the studies differ in what is worth having ({', '.join(f'{m:g}' for m in sorted(margins))} points). "
            "Give them one: csham compare --study DIR --no-train --worthwhile 0.5."
        )
    rows = [row for part in parts for row in part.rows()]
    judged = None
    if any(one.n for part in parts for one in part.results.comparisons):
        judged = verdict(
            rows,
            metric=METRIC,
            variant="attention",
            groups="study",
            baseline=BASELINE,
            unit="percent",
            worthwhile=margins.pop(),
            rounded=STORED,
        )
    notes = [*_shared(parts), *(f"{part.name}: {note}" for part in parts for note in part.notes)]
    return Overview(
        [part.share() for part in parts],
        judged,
        [cost for part in parts for cost in part.costs()],
        [*notes, *(judged.notes if judged else [])],
    )


def _shared(parts: Sequence[StudyPart]) -> Iterator[str]:
    """Say which studies have the same runs, as one has that was put together of others."""
    for one, other in combinations(parts, 2):
        if runs := len(one.runs() & other.runs()):
            count = "counts" if runs == 1 else "count"
            yield (
                f"{one.name} and {other.name} share {counted(runs, 'run')}, which {count} twice here: what is found "
                "rests on fewer runs than it seems. Leave out one of them."
            )


@dataclass(frozen=True)
class StudyPart:
    """One study as it is read.

    Attributes:
        name: Of its folder.
        study: Its plan.
        results: Its table.
        measured: Contents of its ``costs.json``; empty where there is none.
        notes: What a reader should know before relying on it.
    """

    name: str
    study: Study
    results: Results
    measured: Mapping[str, Any]
    notes: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> StudyPart:
        """Read a study's folder.

        Raises:
            UserError: It is no study, or a file cannot be understood.
        """
        read = read_folder(path)
        notes = [*read.warnings, *([f"{read.unchecked}."] if read.unchecked else [])]
        try:
            measured = read_costs(path) or {}
        except UserError as err:
            measured = {}
            notes.append(f"{err}; times are those of the runs.")
        return cls(path.resolve().name, read.study, read.results, measured, notes)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each finished run of the networks that are compared."""
        runs = self.results.runs
        return [
            {"study": group, "attention": variant, "seed": seed, METRIC: float(runs[label, seed]["result"]["top1"])}
            for label, (group, variant) in self._named().items()
            for seed in self.study.seeds
            if (label, seed) in runs
        ]

    def runs(self) -> set[tuple[str, str, str]]:
        """Return what tells each finished run from any other; runs without their times are left out."""
        told = ((run["key"], run.get("started"), run.get("finished")) for run in self.results.runs.values())
        return {(key, started, finished) for key, started, finished in told if started and finished}

    def _named(self) -> dict[str, tuple[str, str]]:
        """Return the group and the variant of each label; budget controls are left to the study's own report."""
        plain = {network.base for network in self.study.networks if network.plain}
        groups = {name: self.name if len(plain) == 1 else f"{self.name}, {name}" for name in plain}
        return {
            network.label: (groups[network.base], BASELINE)
            if network.plain
            else (groups[network.base], network.label.removeprefix(f"{network.base} + "))
            for network in self.study.networks
            if network.instead_of is None and network.base in groups
        }

    def share(self) -> StudyShare:
        """Return how much of it is done."""
        study, results = self.study, self.results
        return StudyShare(
            self.name,
            Path(study.data.source).name,
            study.data.image_size,
            study.settings["epochs"],
            len(study.seeds),
            len(study.networks),
            len(study.cells()),
            len(results.runs),
            len(results.failed),
            tuple(sorted({machine_of(record) for record in results.runs.values()})),
        )

    def costs(self) -> list[CostRow]:
        """Return the training times measured side by side, and those of the runs on each kind of machine beside."""
        named = self._named()
        plain = {group: label for label, (group, variant) in named.items() if variant == BASELINE}
        rows = []
        for machine, times, measured in self._times():
            for label, (group, variant) in named.items():
                ours, theirs = times.get(label, {}), times.get(plain[group], {})
                both = ours.keys() & theirs.keys()
                # Of a single run nobody knows what else the machine did meanwhile, or that it was asleep.
                if variant != BASELINE and len(both) >= (1 if measured else 2):
                    ratio = fsum(ours[key] for key in both) / fsum(theirs[key] for key in both)
                    rows.append(CostRow(group, variant, machine, ratio, measured))
        return rows

    def measured_times(self) -> dict[str, float]:
        """Return the time of a training step, in ms, of each label that was measured side by side with the others."""
        rows = self.measured.get("costs", [])
        return {row["network"]: float(row["train_step_ms"]) for row in rows if is_number(row.get("train_step_ms"))}

    def _times(self) -> Iterable[tuple[str, Mapping[str, Mapping[int, float]], bool]]:
        """Give machines with the times that each network took there, by seed; or of one seed, measured side by side."""
        if times := {label: {0: ms} for label, ms in self.measured_times().items()}:
            machine = self.measured.get("machine", {})
            parts = (machine.get("gpu") or machine.get("processor"), machine.get("cpu_capability"))
            yield ", ".join(map(str, filter(None, parts))) or "one machine", times, True
        seconds: dict[str, dict[str, dict[int, float]]] = {}
        for (label, seed), record in self.results.runs.items():
            environment = record.get("environment") or {}
            machine = ", ".join(map(str, filter(None, [machine_of(record), environment.get("processor")])))
            if not environment.get("shares_process") and is_number(value := record["result"].get("seconds")):
                seconds.setdefault(machine, {}).setdefault(label, {})[seed] = float(value)
        for machine in sorted(seconds):
            yield machine, seconds[machine], False
