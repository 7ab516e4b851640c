"""Kinds of machine that the runs of a study were made on, and whether that matters to their results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from csham.study.record import is_number
from csham.study.statistics import ALPHA, STORED, has_spread, with_sign
from csham.words import counted

__all__ = ["machine_notes", "machine_of"]

Record = Mapping[str, Any]
_FEWEST = 2  # runs on each machine, below which there is nothing to test


def machine_of(record: Record) -> str:
    """Name the kind of machine a run was made on: device and minor version of PyTorch."""
    environment, machine = record.get("environment") or {}, (record.get("result") or {}).get("machine") or {}
    device = str(environment.get("device") or machine.get("device") or "an unknown device").partition(":")[0]
    torch = str((environment.get("versions") or {}).get("torch") or "")
    return f"{device} with torch {'.'.join(torch.split('.')[:2])}" if torch else device


def machine_notes(runs: Iterable[Record], repeats: Iterable[Record], plain: Sequence[str]) -> list[str]:
    """Say which kinds of machine a study's runs were made on, if there are several, and whether that matters.

    It is tested on the plain networks: by the seeds that were run on both kinds of machine where there are enough
    (paired t-test), else by all seeds of each (Welch's t-test).

    Args:
        runs: Finished runs, one for each cell.
        repeats: Second runs of cells.
        plain: Labels of the plain networks.
    """
    runs, repeats = list(runs), list(repeats)
    counts: dict[str, int] = defaultdict(int)
    for record in runs:
        counts[machine_of(record)] += 1
    if len({machine_of(record) for record in (*runs, *repeats)}) < 2:
        return []
    shown = ", ".join(f"{name} ({counted(count, 'run')})" for name, count in sorted(counts.items()))
    notes = [f"The runs were made on {len(counts)} kinds of machine: {shown}."] if len(counts) > 1 else []
    tops: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for record in (*repeats, *runs):
        if is_number(top1 := record["result"].get("top1")):
            tops[record["label"], machine_of(record)][record["seed"]] = float(top1)
    machines = sorted({machine for _, machine in tops})
    for label in plain:
        ran = [machine for machine in machines if len(tops[label, machine]) >= _FEWEST]
        notes += [_compared(label, pair, tops) for pair in combinations(ran, 2)]
        if len(ran) < 2:
            notes.append(f"Whether the machine matters to {label} cannot be tested: that takes two seeds on each kind.")
    return notes


def _compared(label: str, pair: tuple[str, str], tops: Mapping[tuple[str, str], Mapping[int, float]]) -> str:
    one, other = (tops[label, machine] for machine in pair)
    both = sorted(set(one) & set(other))
    if paired := len(both) >= _FEWEST:
        samples = [[other[seed] - one[seed] for seed in both]]
        how = f"{len(both)} seeds run on both"
    else:
        samples = [list(other.values()), list(one.values())]
        how = f"{len(one)} and {len(other)} seeds"
    difference = fmean(samples[0]) - (0.0 if paired else fmean(samples[1]))
    shown = f"{label} on {pair[1]} against {pair[0]}: {with_sign(difference)} points"
    if not any(has_spread(np.array(sample), STORED) for sample in samples):
        return f"{shown} with each of {how}, which leaves no spread to test."
    found = stats.ttest_1samp(samples[0], 0.0) if paired else stats.ttest_ind(*samples, equal_var=False)
    low, high = found.confidence_interval(1 - ALPHA)
    matters = "it matters: compare within one kind" if found.pvalue < ALPHA else "no sign that it matters"
    return f"{shown} (95% {with_sign(low)} to {with_sign(high)}, {how}): {matters}."
