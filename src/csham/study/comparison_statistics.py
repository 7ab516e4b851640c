"""Numbers of a comparison: each is declared here once, and the tables and the JSON of a study read that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from csham.study.grid import MOST_SEEDS
from csham.study.statistics import FEW, Difference, Interval

__all__ = ["STATISTICS", "Statistic", "computed"]


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number, or interval, of a network against the plain one.

    Attributes:
        name: Its key in JSON.
        columns: Its keys in tables for programs, if not :attr:`keys`; of an interval two.
        title: Its head in tables for readers; empty: it is not in them.
        help: Its meaning, in a few words.
        compute: Finds it from the paired differences, perhaps none, in percentage points; None where there is none.
            Without it the number is what :class:`~csham.study.statistics.Difference` has under ``name``.
        shown: Its kind to readers: a number with its sign, one without, an interval, a p-value or a count.
        instead: Words in its place, if there is something to say.
    """

    name: str
    columns: tuple[str, ...] = ()
    title: str = ""
    help: str = ""
    compute: Callable[[Sequence[float]], float | Interval | None] | None = None
    shown: Literal["difference", "number", "interval", "p", "count"] = "number"
    instead: Callable[[Difference], str | None] = lambda _: None

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys in tables for programs."""
        ends = (f"{self.name}_low", f"{self.name}_high") if self.shown == "interval" else (self.name,)
        return self.columns or ends


def _too_few(one: Difference) -> str | None:
    return f"from {FEW} seeds on" if one.t_interval is not None and one.n < FEW else None


def _how_many(one: Difference) -> str | None:
    if one.verdict != "cannot tell yet":
        return "\N{EN DASH}"
    return None if one.seeds_needed or one.t_interval is None else f"over {MOST_SEEDS}"


STATISTICS = {
    one.name: one
    for one in [
        Statistic(
            name="mean",
            columns=("difference",),
            title="difference",
            help="Test top-1 minus the plain network's, mean over paired seeds, percentage points.",
            shown="difference",
        ),
        Statistic(name="sd"),
        Statistic(
            name="t_interval",
            columns=("t_low", "t_high"),
            title="95%, t",
            help="Student's t interval of the mean difference.",
            shown="interval",
        ),
        Statistic(
            name="bootstrap_interval",
            columns=("bca_low", "bca_high"),
            title="95%, BCa",
            help=f"Bootstrap interval of the mean difference; too narrow with fewer than {FEW} seeds.",
            shown="interval",
            instead=_too_few,
        ),
        Statistic(name="n", columns=("seeds",), title="seeds", help="That both networks have finished.", shown="count"),
        Statistic(name="p_t", title="p, t-test", help="Paired, two-sided.", shown="p"),
        Statistic(name="p_sign_flip", title="p, sign flip", help="Permutation test, two-sided.", shown="p"),
        Statistic(name="p_equivalent", shown="p"),
        Statistic(
            name="p_t_holm",
            title="p, Holm",
            help="Of the t-test, or what stands in for it without spread; corrected for the number of rows.",
            shown="p",
        ),
        Statistic(name="p_sign_flip_holm", shown="p"),
        Statistic(name="p_equivalent_holm", shown="p"),
        Statistic(
            name="smallest_detectable",
            title="smallest detectable",
            help="Difference that so many seeds show four times in five, percentage points.",
        ),
        Statistic(
            name="seeds_needed",
            title="seeds needed",
            help="In all, for a verdict four times in five if mean and scatter stay.",
            shown="count",
            instead=_how_many,
        ),
    ]
}
"""Every statistic by its name, in the order of the tables."""


def computed(differences: Sequence[float]) -> dict[str, float | Interval | None]:
    """Compute from paired differences, in percentage points, the statistics that need nothing else, by their names."""
    return {one.name: one.compute(differences) for one in STATISTICS.values() if one.compute}
