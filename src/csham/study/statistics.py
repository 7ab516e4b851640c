"""Verdicts on paired differences: intervals, tests, and how many seeds would settle it.

One difference per seed: top-1 of a network minus top-1 of the plain network, in percentage points. A table is all
comparisons of one study; what corrects for testing many things at once goes over all of it. ALPHA = 0.05.

"no difference worth having"
    The 95% t-interval lies within ±worthwhile, even where it leaves out 0, and the test of equivalence (two one-sided
    t-tests) says so too after Holm's correction: by their intervals alone, a tenth of the studies of five attentions
    that are all just worth having would find one that is not.
"helps", "hurts"
    The paired t-test's p after Holm's correction is below ALPHA, and the sign-flip p is at most the least one at ALPHA
    or above that so many seeds can give, so that one or two wild seeds do not decide.
"cannot tell yet"
    Else, and always with fewer than 3 pairs.

Where all differences are the same number, but for what rounding the accuracies makes of it, there is no spread to
measure: accuracies are counts of images, and with a small test set counts coincide by chance. Then there are no
t-interval and no t-test. The chance that all n seeds fall on one side of their median takes their place: 2 / 2**n for a
difference, if all are above 0 or all below, and 1 / 2**n for equivalence, if all lie within the margin by more than the
step of the rounding, which is what it may have moved them by. Else p is 1. So 6 seeds are the fewest that can end in a
verdict.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from csham.errors import UserError
from csham.study.grid import MOST_SEEDS, WORTHWHILE
from csham.training.metrics import DECIMALS

__all__ = [
    "ALPHA",
    "EXACT_UP_TO",
    "FEW",
    "POWER",
    "STORED",
    "Difference",
    "Interval",
    "Judgement",
    "Verdict",
    "binomial_se",
    "bootstrap_interval",
    "compare",
    "extremes",
    "has_spread",
    "holm",
    "judge",
    "points",
    "sign_flip_p",
    "t_interval",
    "with_sign",
]

ALPHA = 0.05
POWER = 0.8
FEWEST = 3  # pairs; with two, the spread is a guess from one number
FEW = 5  # fewer than these can say little, and a verdict from them says so
EXACT_UP_TO = 20  # pairs; 2**19 sums take 10 ms
RESAMPLES = 9_999
FLIPS = 99_999
NO_SPREAD = 1e-9  # percentage points: only rounding of the subtraction is smaller
STORED = 10.0**-DECIMALS  # percentage points: what runs keep their metrics in steps of
_ROUNDINGS = 2.5  # steps: differences that are equal on paper can be two apart, of four numbers rounded

Verdict = Literal["helps", "hurts", "no difference worth having", "cannot tell yet"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Tests of one comparison, and the verdict; percentage points, positive where the network is better.

    Attributes:
        n: Pairs.
        mean: Of the differences; None without pairs.
        sd: Their standard deviation (n - 1); None with fewer than two.
        t_interval: Student-t 95% interval of the mean; None with fewer than two, or without spread.
        p_t: Paired t-test, two-sided; None where there is no ``t_interval``.
        p_sign_flip: Sign-flip permutation test on abs(mean), two-sided; exact up to ``EXACT_UP_TO`` pairs.
        p_equivalent: That the difference is worth having, two one-sided t-tests; None with fewer than two pairs. See
            the top of this file for what it is without spread.
        p_t_holm: ``p_t``, or without spread what stands in for it (see the top of this file), after Holm's correction
            over the table.
        p_sign_flip_holm: ``p_sign_flip``, likewise.
        p_equivalent_holm: ``p_equivalent``, likewise.
        verdict: See the top of this file.
    """

    n: int
    mean: float | None
    sd: float | None
    t_interval: Interval | None
    p_t: float | None
    p_sign_flip: float | None
    p_equivalent: float | None
    p_t_holm: float | None
    p_sign_flip_holm: float | None
    p_equivalent_holm: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Difference(Judgement):
    """A judgement with what takes longer to find: the bootstrap's interval, and what more seeds would give.

    Attributes:
        bootstrap_interval: :func:`bootstrap_interval`; None with fewer than ``FEW`` pairs, where it would hold the true
            difference far less often than it says.
        level: What this comparison's own p must be below: ``ALPHA`` over the comparisons that Holm's correction has not
            rejected besides it.
        smallest_detectable: The true difference that so many seeds show with ``POWER``, if the spread is as observed;
            None where there is none.
        seeds_needed: In all, to end with a verdict with ``POWER`` if mean and spread are as observed; ``n`` where
            there is a verdict already, ``FEW`` where nothing can be estimated, None above ``MOST_SEEDS``.
        sentence: All this in plain words, without names.
    """

    bootstrap_interval: Interval | None
    level: float
    smallest_detectable: float | None
    seeds_needed: int | None
    sentence: str


def compare(
    table: Sequence[Sequence[float]],
    worthwhile: float | Sequence[float] = WORTHWHILE,
    units: Sequence[str] | None = None,
    rounded: float | Sequence[float] = 0.0,
) -> list[Difference]:
    """Say of every comparison of a table what its differences show.

    Args:
        table: For each comparison its paired differences, one per seed, in percentage points; perhaps none.
        worthwhile: The least difference worth having, in percentage points; one, or one for each comparison.
        units: For each comparison the word behind its numbers, or none; None where all are percentage points.
        rounded: Step that the numbers were rounded to before they were subtracted; one, or one for each comparison.

    Raises:
        UserError: A difference, or ``worthwhile``, is not a finite number.
    """
    margins, tests = _margins(worthwhile, len(table)), _tests(table, worthwhile, rounded)
    levels = _levels([test.p_differs for test in tests])
    equivalence_levels = _levels([test.p_equivalent for test in tests])
    words = ["points"] * len(table) if units is None else units
    return [
        _complete(found, test, level, equivalence_level, _Margin(margin, unit), len(tests))
        for found, test, level, equivalence_level, margin, unit in zip(
            _judged(tests), tests, levels, equivalence_levels, margins, words, strict=True
        )
    ]


def judge(
    table: Sequence[Sequence[float]],
    worthwhile: float | Sequence[float] = WORTHWHILE,
    rounded: float | Sequence[float] = 0.0,
) -> list[Judgement]:
    """Do what :func:`compare` does, as far as the verdicts need it: without the bootstrap and the look ahead."""
    return _judged(_tests(table, worthwhile, rounded))


def _tests(
    table: Sequence[Sequence[float]], worthwhile: float | Sequence[float], rounded: float | Sequence[float]
) -> list[_Tests]:
    margins, steps = _margins(worthwhile, len(table)), _each(rounded, len(table))
    return [_Tests.of(_checked(values), *rest) for values, *rest in zip(table, margins, steps, strict=True)]


def _judged(tests: Sequence[_Tests]) -> list[Judgement]:
    """Correct the tests for being many, and say what they show."""
    differs, sign_flip, equivalent = (
        holm([getattr(test, name) for test in tests]) for name in ("p_differs", "p_sign_flip", "p_equivalent")
    )
    return [
        Judgement(
            n=test.n,
            mean=test.mean,
            sd=test.sd,
            t_interval=test.interval,
            p_t=test.p_t,
            p_sign_flip=test.p_sign_flip,
            p_equivalent=test.p_equivalent,
            p_t_holm=differs[i],
            p_sign_flip_holm=sign_flip[i],
            p_equivalent_holm=equivalent[i],
            verdict=_verdict(test, differs[i], equivalent[i]),
        )
        for i, test in enumerate(tests)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for being many, by Holm's step-down method.

    A missing one counts as 1: the comparison stands in the table and will be tested, and its neighbours' p must not
    rise when it is.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6 (1979).
    """
    known = np.array([1.0 if p is None else p for p in p_values])
    order = np.argsort(known, kind="stable")
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)), 1.0)
    return [None if p is None else float(value) for p, value in zip(p_values, adjusted, strict=True)]


def t_interval(mean: float, se: float, df: int) -> Interval:
    """Return the Student-t 95% interval of an estimate with this standard error."""
    half = float(special.stdtrit(df, 1 - ALPHA / 2)) * se
    return mean - half, mean + half


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float | None:
    """Return how often the mean is as far from 0 as observed, or farther, when every difference's sign is a coin's.

    All 2**n signs are tried with up to ``EXACT_UP_TO`` differences; else ``FLIPS`` random ones and the observed
    ones, always the same for the same differences. None without differences.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return None
    values = np.sort(values if values.sum() >= 0 else -values)  # one answer, whatever the order and the direction
    if len(values) > EXACT_UP_TO:
        test = stats.permutation_test(
            (values,),
            lambda x, axis: np.abs(x.mean(axis)),
            permutation_type="samples",
            vectorized=True,
            n_resamples=FLIPS,
            batch=10_000,
            alternative="greater",
            rng=np.random.default_rng(0),
        )
        return float(test.pvalue)
    sums = values[:1]  # its sign may stay: flipping all of them changes nothing
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    tie = 1e-9 * np.abs(values).sum()  # sums that are equal on paper
    return float(np.mean(np.abs(sums) >= values.sum() - tie))


def bootstrap_interval(differences: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the BCa bootstrap 95% interval of the mean; None with fewer than two differences, or without spread.

    Always the same for the same differences, in any order.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not has_spread(values):
        return None
    sign = 1.0 if _sum(values) >= 0 else -1.0  # so that the negated differences give the negated interval
    found = stats.bootstrap(
        (np.sort(sign * values),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - ALPHA,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = sorted((sign * float(found.low), sign * float(found.high)))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def has_spread(values: np.ndarray, rounded: float = 0.0) -> bool:
    """Return False for differences that differ by no more than rounding: of a subtraction, and before to such steps."""
    return bool(np.ptp(values) > max(NO_SPREAD, _ROUNDINGS * rounded))


def binomial_se(top1: float, images: int) -> float:
    """Return the standard error of one accuracy from having measured it on these images only.

    ``100 * sqrt(q * (1 - q) / images)`` with ``q = top1 / 100``, in percentage points.
    """
    return 100 * math.sqrt(top1 / 100 * (1 - top1 / 100) / images)


def points(value: float, digits: int = 2) -> str:
    """Write a number of percentage points: two decimals, or two digits of something small."""
    if abs(value) <= NO_SPREAD:
        return "0.00"
    return f"{Decimal(f'{value:.{digits}g}'):f}" if abs(value) < 0.095 else f"{value:.{digits}f}"


def extremes(values: Iterable[float]) -> tuple[str, str]:
    """Write the smallest and the largest of some differences."""
    values = list(values)
    return with_sign(min(values)), with_sign(max(values))


def with_sign(value: float, digits: int = 2) -> str:
    """Write a difference in percentage points, as :func:`points` does, with its sign."""
    return f"{'+' if value > NO_SPREAD else ''}{points(value, digits)}"


@dataclass(frozen=True)
class _Tests:
    """The tests of one comparison by itself.

    Attributes:
        values: Differences.
        rounded: Step that their numbers were rounded to.
        p_differs: The p that decides on a difference: the t-test's, or what stands in for it.
        one_sided: True if all differences lie on one side of 0.
        inside: True if all lie within the margin, wherever rounding moved them from.
    """

    values: np.ndarray
    rounded: float
    mean: float | None = None
    sd: float | None = None
    interval: Interval | None = None
    p_t: float | None = None
    p_differs: float | None = None
    p_sign_flip: float | None = None
    p_equivalent: float | None = None
    one_sided: bool = False
    inside: bool = False

    @property
    def n(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, values: np.ndarray, worthwhile: float, rounded: float) -> _Tests:
        n, p_sign_flip = len(values), sign_flip_p(values)
        if n < 2:
            return cls(values, rounded, float(values[0]) if n else None, p_sign_flip=p_sign_flip)
        mean = _sum(values) / n
        if not has_spread(values, rounded):
            one_sided = bool((values > NO_SPREAD).all() or (values < -NO_SPREAD).all())
            inside = bool(np.abs(values).max() + rounded < worthwhile)
            ps = 2 * 0.5**n if one_sided else 1.0, p_sign_flip, 0.5**n if inside else 1.0
            return cls(values, rounded, mean, 0.0, None, None, *ps, one_sided, inside)
        sd = math.sqrt(_sum((values - mean) ** 2) / (n - 1))
        se = sd / math.sqrt(n)
        p_t = 2 * float(special.stdtr(n - 1, -abs(mean) / se))
        p_equivalent = float(special.stdtr(n - 1, (abs(mean) - worthwhile) / se))
        interval = t_interval(mean, se, n - 1)
        return cls(values, rounded, mean, sd, interval, p_t, p_t, p_sign_flip, p_equivalent)

    @property
    def equivalent_alone(self) -> bool:
        """True if the interval lies within the margin; without spread, what has the same chance of being wrong."""
        return self.p_equivalent is not None and self.p_equivalent < ALPHA / 2


@dataclass(frozen=True)
class _Margin:
    """The least difference worth having, and how numbers beside it are written."""

    value: float
    unit: str

    def of(self, value: str) -> str:
        """Write a number with its unit, if it has one."""
        return f"{value} {self.unit}".rstrip()

    def end(self, value: float) -> str:
        """Write an end of an interval, with a digit more where it would look like the margin and is not."""
        return with_sign(value, 3 if points(abs(value)) == points(self.value) else 2)

    @property
    def text(self) -> str:
        return self.of(f"{self.value:g}")


def _margins(worthwhile: float | Sequence[float], count: int) -> Sequence[float]:
    for margin in _each(worthwhile, max(count, 1)):
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"worthwhile must be a number of percentage points, 0 or more, got {margin!r}.")
    return _each(worthwhile, count)


def _each(value: float | Sequence[float], count: int) -> Sequence[float]:
    return [value] * count if isinstance(value, int | float) else value


def _verdict(test: _Tests, p_differs: float | None, p_equivalent: float | None) -> Verdict:
    if test.n < FEWEST or p_differs is None or p_equivalent is None or test.p_sign_flip is None or test.mean is None:
        return "cannot tell yet"
    if test.equivalent_alone and p_equivalent < ALPHA:
        return "no difference worth having"
    if p_differs < ALPHA and test.p_sign_flip <= _most_sign_flip(test.n):
        return "helps" if test.mean > 0 else "hurts"
    return "cannot tell yet"


def _most_sign_flip(n: int) -> float:
    """Return the least p at ``ALPHA`` or above that the sign-flip test of n pairs can give: 2, 4, ... of 2**n signs."""
    signs = 2.0 ** (n - 1)
    return math.ceil(ALPHA * signs) / signs


def _checked(differences: Sequence[float]) -> np.ndarray:
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError(
            f"the paired differences must be finite numbers, one per seed, got {values.tolist()}. A run whose accuracy "
            "is not a number failed, and has to be left out or run again."
        )
    return values


def _sum(values: np.ndarray) -> float:
    return math.fsum(values.tolist())  # the same in any order


def _levels(p_values: Sequence[float | None]) -> list[float]:
    """Return for each test what its own p must be below to be rejected by Holm's method, the others being as they are.

    That is ``ALPHA`` over the number of tests left when the others have been rejected as far as they can.
    """
    known = [1.0 if p is None else p for p in p_values]
    return [_level(sorted(known[:i] + known[i + 1 :]), len(known)) for i in range(len(known))]


def _level(others: Sequence[float], tests: int) -> float:
    rejected = 0
    while rejected < len(others) and others[rejected] * (tests - rejected) < ALPHA:
        rejected += 1
    return ALPHA / (tests - rejected)


def _complete(
    found: Judgement, test: _Tests, level: float, equivalence_level: float, margin: _Margin, tests: int
) -> Difference:
    outlook = _Outlook(found, test, level, min(equivalence_level, ALPHA / 2), margin.value)
    seeds = outlook.seeds_needed()
    return Difference(
        **vars(found),
        bootstrap_interval=bootstrap_interval(test.values) if found.n >= FEW and found.t_interval else None,
        level=level,
        smallest_detectable=outlook.smallest_detectable(),
        seeds_needed=seeds,
        sentence=_sentence(found, test, seeds, margin, tests),
    )


@dataclass(frozen=True)
class _Outlook:
    """Outlook on other true differences and on more seeds, if the spread is as observed."""

    found: Judgement
    test: _Tests
    level: float
    equivalence_level: float
    worthwhile: float

    def smallest_detectable(self) -> float | None:
        found = self.found
        if not found.sd or found.n < 2:
            return None
        se = found.sd / math.sqrt(found.n)
        df = found.n - 1
        most = (
            float(special.stdtrit(df, 1 - self.level / 2)) * 10 + 10
        )  # a chi of one degree is below 1/4 one time in 5
        return se * float(optimize.brentq(lambda shift: _power(shift, df, self.level) - POWER, 0, most))

    def seeds_needed(self) -> int | None:
        found = self.found
        if found.verdict != "cannot tell yet":
            return found.n
        if found.n < 2 or found.mean is None or found.sd is None:
            return FEW
        ways = [self._shows_difference, self._shows_equivalence]
        counts = [count for way in ways if (count := _first(way, max(found.n + 1, FEW))) is not None]
        return min(counts, default=None)

    def _shows_difference(self, n: int) -> bool:
        mean, sd = abs(self.found.mean or 0.0), self.found.sd or 0.0
        if not sd:
            return self.test.one_sided and 2 * 0.5**n < self.level
        return _power(mean / sd * math.sqrt(n), n - 1, self.level) >= POWER

    def _shows_equivalence(self, n: int) -> bool:
        mean, sd = abs(self.found.mean or 0.0), self.found.sd or 0.0
        if mean >= self.worthwhile:
            return False
        if not sd:
            return self.test.inside and 0.5**n < self.equivalence_level
        return _equivalence_power(mean, sd, n, self.worthwhile, self.equivalence_level) >= POWER


def _power(shift: float, df: int, level: float) -> float:
    """Return how often a two-sided t-test rejects when t's noncentrality is ``shift``.

    The noncentral t, averaged over the chi distribution by quantiles: scipy.stats.nct is NaN for some far tails.
    """
    critical = float(special.stdtrit(df, 1 - level / 2)) * _chi(df)
    return float(np.mean(special.ndtr(shift - critical) + special.ndtr(-shift - critical)))


def _equivalence_power(mean: float, sd: float, n: int, worthwhile: float, level: float) -> float:
    """Return how often both one-sided t-tests at ``level`` find the true difference ``mean`` within ``worthwhile``."""
    se = sd / math.sqrt(n)
    critical = -float(special.stdtrit(n - 1, level)) * _chi(n - 1)
    inside = special.ndtr((worthwhile - mean) / se - critical) - special.ndtr(critical - (worthwhile + mean) / se)
    return float(np.mean(np.maximum(inside, 0.0)))


@lru_cache(maxsize=256)
def _chi(df: int) -> np.ndarray:
    """Return 1000 quantiles, evenly spaced, of an estimated standard deviation over the true one."""
    quantiles = (np.arange(1000) + 0.5) / 1000
    return np.sqrt(2 * special.gammaincinv(df / 2, quantiles) / df)


def _first(enough: Callable[[int], bool], least: int) -> int | None:
    """Return the smallest number from ``least`` to ``MOST_SEEDS`` that is enough, if any; more are enough too."""
    numbers = range(least, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=enough)
    return numbers[place] if place < len(numbers) else None


def _sentence(found: Judgement, test: _Tests, seeds_needed: int | None, margin: _Margin, tests: int) -> str:
    if found.mean is None:
        return "Cannot tell yet: no seed has been run both with and without it."
    shown = _shown(found, test.values, margin)
    if found.verdict == "cannot tell yet":
        text = f"Cannot tell yet: {shown}{_why_open(found, margin, tests)}{_what_it_takes(found, seeds_needed)}."
    elif found.verdict == "no difference worth having":
        text = f"No difference worth having: {shown}{_how_little(found, margin)}."
    else:
        text = f"{found.verdict.capitalize()}: {shown}{_perhaps_small(found, test, margin)}."
    return text + (" Fewer than five seeds can say little." if 1 < found.n < FEW else "")


def _shown(found: Judgement, values: np.ndarray, margin: _Margin) -> str:
    gain = margin.of(with_sign(found.mean or 0.0))
    if found.t_interval is not None:
        low, high = found.t_interval
        return f"{gain} (95% {margin.end(low)} to {margin.end(high)}, {found.n} seeds)"
    if found.n == 1:
        return f"{gain} with one seed, which says nothing of chance"
    least, most = extremes(values)
    if least == most:
        return f"{gain} with each of {found.n} seeds, which leaves no spread to measure"
    return f"{gain} ({least} to {most}, {found.n} seeds), of which rounding leaves no spread to measure"


def _perhaps_small(found: Judgement, test: _Tests, margin: _Margin) -> str:
    least = min(map(abs, found.t_interval)) if found.t_interval else float(np.abs(test.values).min()) - test.rounded
    return f"; perhaps by less than the {margin.text} worth having" if least < margin.value else ""


def _how_little(found: Judgement, margin: _Margin) -> str:
    real = found.t_interval is not None and not found.t_interval[0] <= 0 <= found.t_interval[1]
    return f"; {'perhaps real, but ' if real else ''}less than the {margin.text} worth having"


def _why_open(found: Judgement, margin: _Margin, tests: int) -> str:
    """Explain what else a reader of the interval may wonder about."""
    if found.t_interval is None or found.n < FEWEST:
        return ""
    low, high = found.t_interval
    if low > 0 or high < 0:
        if found.p_t_holm is not None and found.p_t_holm < ALPHA:
            return f"; a few seeds carry it (sign-flip p {found.p_sign_flip:.2g})"
        return f"; among {tests} comparisons chance may do that"
    if -margin.value < low and high < margin.value:
        return f"; within {margin.text}, but among {tests} comparisons chance may do that"
    return ""


def _what_it_takes(found: Judgement, seeds_needed: int | None) -> str:
    n = found.n
    if seeds_needed is None:
        several = f"more than {MOST_SEEDS} seeds would be needed"
        return f"; {several if found.t_interval else 'more seeds like these would not settle it'}"
    more = seeds_needed - n
    return f"; {'about' if n > 1 else 'at least'} {more} more seed{'s' if more > 1 else ''} to settle it"
