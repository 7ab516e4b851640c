"""One estimate from the comparisons of several groups (backbones, datasets), whose true differences may differ.

Random effects: the variance between groups by DerSimonian and Laird ("Meta-analysis in clinical trials", Controlled
Clinical Trials 7, 1986), the interval by Hartung and Knapp ("A refined method for the meta-analysis of controlled
clinical trials with binary outcome", Statistics in Medicine 20, 2001) with their factor at least 1, as IntHout et al.
recommend (BMC Medical Research Methodology 14:25, 2014): few groups give wide intervals. What is estimated is the mean
over groups such as these, not that of any one of them.

The chance in the groups' means is taken from the spread within all of them together: by their own spreads, of a few
seeds each, groups that are calm by chance would get most of the weight, and intervals hold the true mean too seldom.

Groups are taken for trained apart. Where the gains of a seed go together in all of them, as those of a run do that was
measured several times, they say less than their number: the interval is then no narrower than over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from csham.study.findings import Comparison
from csham.study.statistics import ALPHA, Interval, Verdict, holm, t_interval, with_sign

__all__ = ["Estimate", "Pooled", "estimate", "pool", "pooled_sentence"]

_NOTHING = 1e-30  # for gains that are the same in every group


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A variant's mean difference over groups.

    Attributes:
        name: Of the variant.
        groups: Groups that count: those with two pairs or more and a spread.
        left_out: Groups in which it was compared that do not.
        together: True if the gains of a seed go together over the groups, and the interval is that over seeds.
        means: The groups' mean differences, in their order.
        mean: Weighted mean of these.
        t_interval: 95% interval of it.
        between: Estimated standard deviation of the groups' true differences.
        i2: Fraction of the variance of ``means`` that is between groups rather than chance.
        p: That the mean over groups is 0.
        p_equivalent: That the mean over groups is worth having, two one-sided tests.
        p_holm: ``p`` after Holm's correction over all variants and metrics.
        p_equivalent_holm: ``p_equivalent``, likewise.
        verdict: As of one group: by the interval within the margin and ``p_equivalent_holm``, or by ``p_holm``.
    """

    name: str
    groups: tuple[str, ...]
    left_out: tuple[str, ...]
    together: bool
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


def pool(metrics: Sequence[tuple[Iterable[Comparison], float]]) -> list[list[Pooled]]:
    """Pool each variant that has two groups that count; Holm's correction goes over those of all metrics.

    Args:
        metrics: For each metric its comparisons, ``backbone`` being the group and ``name`` the variant, and the
            smallest difference worth having, in their unit.

    Returns:
        For each metric its variants.
    """
    found = [
        (place, _Variant.of(several, worthwhile))
        for place, (comparisons, worthwhile) in enumerate(metrics)
        for several in _by_name(comparisons)
        if sum(bool(one.sd) for one in several) > 1
    ]
    differs = holm([one.estimate.p for _, one in found])
    equivalent = holm([one.estimate.p_equivalent(one.worthwhile) for _, one in found])
    pooled: list[list[Pooled]] = [[] for _ in metrics]
    for (place, one), p, q in zip(found, differs, equivalent, strict=True):
        pooled[place].append(_judged(one, float(p or 0.0), float(q or 0.0)))
    return pooled


def _by_name(comparisons: Iterable[Comparison]) -> Iterable[list[Comparison]]:
    by_name: dict[str, list[Comparison]] = {}
    for one in comparisons:
        if one.instead_of is None and one.n:
            by_name.setdefault(one.name, []).append(one)
    return by_name.values()


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
    pairs = np.broadcast_to(pairs, means.shape)
    variances = np.average(deviations**2, weights=pairs - 1) / pairs
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


@dataclass(frozen=True)
class _Variant:
    """A variant's comparisons in its groups, and what they say together."""

    several: Sequence[Comparison]
    counted: Sequence[Comparison]
    estimate: Estimate
    together: bool
    worthwhile: float

    @classmethod
    def of(cls, several: Sequence[Comparison], worthwhile: float) -> _Variant:
        counted = [one for one in several if one.sd]
        means, deviations, pairs = np.array([(one.mean, one.sd, one.n) for one in counted], dtype=float).T
        groups = estimate(means, deviations, pairs)
        seeds = _over_seeds(counted, groups)
        wider = groups if seeds is None or seeds.interval[1] < groups.interval[1] else seeds
        return cls(several, counted, wider, wider is seeds, worthwhile)


def _over_seeds(counted: Sequence[Comparison], groups: Estimate) -> Estimate | None:
    """Estimate by the seeds that all groups share, if their gains go together; None if each group's are its own.

    By the F test of a seed's mean over groups against what is left (an analysis of variance in two ways).
    """
    gains = [dict(zip(one.seeds, one.differences, strict=True)) for one in counted]
    shared = [seed for seed in gains[0] if all(seed in others for others in gains)]
    if len(shared) < 2:
        return None
    table = np.array([[of[seed] for seed in shared] for of in gains])
    table -= table.mean(1, keepdims=True)
    by_seed = table.mean(0)
    df = len(shared) - 1
    variance = float(by_seed @ by_seed) / df
    left = float(((table - by_seed) ** 2).sum()) / (df * (len(gains) - 1))
    if special.fdtrc(df, df * (len(gains) - 1), len(gains) * variance / max(left, _NOTHING)) >= ALPHA:
        return None
    return replace(groups, df=df, se=math.sqrt(variance / len(shared)))


def _judged(variant: _Variant, p_holm: float, p_equivalent_holm: float) -> Pooled:
    pooled, worthwhile = variant.estimate, variant.worthwhile
    low, high = pooled.interval
    verdict: Verdict = "cannot tell yet"
    if -worthwhile < low and high < worthwhile and p_equivalent_holm < ALPHA:
        verdict = "no difference worth having"
    elif p_holm < ALPHA:
        verdict = "helps" if pooled.mean > 0 else "hurts"
    return Pooled(
        name=variant.counted[0].name,
        groups=tuple(one.backbone for one in variant.counted),
        left_out=tuple(one.backbone for one in variant.several if one not in variant.counted),
        together=variant.together,
        means=tuple(float(one.mean or 0.0) for one in variant.counted),
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
