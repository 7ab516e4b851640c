"""One estimate from the comparisons of several groups (backbones, datasets), whose true differences may differ.

Random effects: the variance between groups by DerSimonian and Laird ("Meta-analysis in clinical trials", Controlled
Clinical Trials 7, 1986), the interval by Hartung and Knapp ("A refined method for the meta-analysis of controlled
clinical trials with binary outcome", Statistics in Medicine 20, 2001) with their factor at least 1, as IntHout et al.
recommend (BMC Medical Research Methodology 14:25, 2014): few groups give wide intervals. What is estimated is the mean
over groups such as these, not that of any one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from csham.study.findings import Comparison
from csham.study.statistics import ALPHA, Interval, Verdict, holm, t_interval, with_sign

__all__ = ["Estimate", "Pooled", "estimate", "pool", "pooled_sentence"]


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A variant's mean difference over groups.

    Attributes:
        name: Of the variant.
        groups: Groups that count: those with two pairs or more and a spread.
        left_out: Groups in which it was compared that do not.
        means: The groups' mean differences, in their order.
        mean: Weighted mean of these.
        t_interval: 95% interval of it.
        between: Estimated standard deviation of the groups' true differences.
        i2: Fraction of the variance of ``means`` that is between groups rather than chance.
        p: That the mean over groups is 0.
        p_equivalent: That the mean over groups is worth having, two one-sided tests.
        p_holm: ``p`` after Holm's correction over the variants.
        p_equivalent_holm: ``p_equivalent``, likewise.
        verdict: As of one group: by the interval within the margin and ``p_equivalent_holm``, or by ``p_holm``.
    """

    name: str
    groups: tuple[str, ...]
    left_out: tuple[str, ...]
    means: tuple[float, ...]
    mean: float
    t_interval: Interval
    between: float
    i2: float
    p: float
    p_equivalent: float
    p_holm: float
    p_equivalent_holm: float
    verdict: Verdict


def pool(comparisons: Iterable[Comparison], worthwhile: float) -> list[Pooled]:
    """Pool each variant that has two groups that count.

    Args:
        comparisons: Of all groups, ``backbone`` being the group and ``name`` the variant.
        worthwhile: The smallest difference worth having, in the unit of the differences.
    """
    by_name: dict[str, list[Comparison]] = {}
    for one in comparisons:
        if one.instead_of is None and one.n:
            by_name.setdefault(one.name, []).append(one)
    found = {}
    for name, several in by_name.items():
        counted = [one for one in several if one.sd]
        if len(counted) > 1:
            means, deviations, pairs = np.array([(one.mean, one.sd, one.n) for one in counted], dtype=float).T
            found[name] = (counted, estimate(means, deviations, pairs))
    differs = holm([pooled.p for _, pooled in found.values()])
    equivalent = holm([pooled.p_equivalent(worthwhile) for _, pooled in found.values()])
    return [
        _judged(name, by_name[name], *found[name], (float(p or 0.0), float(q or 0.0)), worthwhile)
        for name, p, q in zip(found, differs, equivalent, strict=True)
    ]


@dataclass(frozen=True)
class Estimate:
    """A weighted mean over groups and its uncertainty.

    Attributes:
        df: Groups less one.
        mean: Of the groups.
        se: Its standard error.
        between: Estimated standard deviation of the groups' true means.
        i2: Fraction of the variance between groups that is not chance.
    """

    df: int
    mean: float
    se: float
    between: float
    i2: float

    @property
    def p(self) -> float:
        """That the mean over groups is 0."""
        return 2 * float(special.stdtr(self.df, -abs(self.mean) / self.se))

    @property
    def interval(self) -> Interval:
        """95% interval of the mean over groups."""
        return t_interval(self.mean, self.se, self.df)

    def p_equivalent(self, worthwhile: float) -> float:
        """That the mean over groups is worth having, two one-sided tests."""
        return float(special.stdtr(self.df, (abs(self.mean) - worthwhile) / self.se))


def estimate(means: np.ndarray, deviations: np.ndarray, pairs: np.ndarray | int) -> Estimate:
    """Pool the means of two groups or more.

    Args:
        means: Of each group's differences.
        deviations: Their standard deviations, above 0.
        pairs: Their numbers.
    """
    variances = deviations**2 / pairs
    weights = 1 / variances
    q = float(weights @ (means - np.average(means, weights=weights)) ** 2)
    df = len(means) - 1
    # The sum of weights less that of their squares over it, which cancel where one group has nearly all the weight.
    scale = sum(weight * np.delete(weights, i).sum() for i, weight in enumerate(weights)) / weights.sum()
    between = max(0.0, (q - df) / float(scale))
    weights = 1 / (variances + between)
    mean = float(np.average(means, weights=weights))
    factor = max(1.0, float(weights @ (means - mean) ** 2) / df)
    i2 = max(0.0, 1 - df / q) if q > 0 else 0.0
    return Estimate(df, mean, math.sqrt(factor / float(weights.sum())), math.sqrt(between), i2)


def _judged(
    name: str,
    several: Sequence[Comparison],
    counted: Sequence[Comparison],
    pooled: Estimate,
    corrected: tuple[float, float],
    worthwhile: float,
) -> Pooled:
    (low, high), (p_holm, p_equivalent_holm) = pooled.interval, corrected
    verdict: Verdict = "cannot tell yet"
    if -worthwhile < low and high < worthwhile and p_equivalent_holm < ALPHA:
        verdict = "no difference worth having"
    elif p_holm < ALPHA:
        verdict = "helps" if pooled.mean > 0 else "hurts"
    return Pooled(
        name=name,
        groups=tuple(one.backbone for one in counted),
        left_out=tuple(one.backbone for one in several if one not in counted),
        means=tuple(float(one.mean or 0.0) for one in counted),
        mean=pooled.mean,
        t_interval=(low, high),
        between=pooled.between,
        i2=pooled.i2,
        p=pooled.p,
        p_equivalent=pooled.p_equivalent(worthwhile),
        p_holm=p_holm,
        p_equivalent_holm=p_equivalent_holm,
        verdict=verdict,
    )


def pooled_sentence(pooled: Sequence[Pooled], unit: str) -> str:
    """Say what the groups together say, the strongest first; nothing without groups."""
    if not pooled:
        return ""
    shown = [
        f"{one.name} {with_sign(one.mean)} {unit}".rstrip()
        + f" (95% {with_sign(one.t_interval[0])} to {with_sign(one.t_interval[1])}, {len(one.groups)} groups: "
        f"{one.verdict})"
        for one in sorted(pooled, key=lambda one: -one.mean)
    ]
    return f"Over groups together: {'; '.join(shown)}."
