"""Results that the commands of a study print."""

from __future__ import annotations

from csham.cli.common import print_table
from csham.study.findings import Comparison, Results
from csham.study.statistics import points, with_sign
from csham.training.metrics import METRICS

__all__ = ["print_results"]

_TOP1 = METRICS["top1"]
_HEADER = ["network", "seeds", _TOP1.with_unit(_TOP1.title), "deviation", "difference", "95%", "verdict"]


def print_results(title: str, results: Results) -> None:
    """Print a row for each network: its accuracy, and what it gains over the plain one."""
    comparisons = {comparison.label: comparison for comparison in results.comparisons}
    rows = []
    for row in results.networks:
        top1 = row.top1
        mean = "" if top1 is None else f"{top1.mean:.2f}"
        deviation = "" if top1 is None or top1.sd is None else points(top1.sd)
        seeds = f"{row.n}/{len(results.seeds)}"
        rows.append([row.label, seeds, mean, deviation, *_compared(comparisons.get(row.label))])
    print_table(title, _HEADER, rows)


def _compared(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["", "", ""]
    difference = "" if comparison.mean is None else with_sign(comparison.mean)
    interval = comparison.t_interval
    bounds = "" if interval is None else f"{with_sign(interval[0])} to {with_sign(interval[1])}"
    return [difference, bounds, comparison.verdict]
