"""How often a study's verdicts and intervals are wrong, by simulation: the tables of docs/statistics.md.

    python benchmarks/verdict_errors.py                  # some minutes
    python benchmarks/verdict_errors.py --studies 500    # half a minute

Every study has five attentions, which share the plain network's runs, so that their differences move together. Prints
the share of studies in which something false is said of any of them, for false "helps", false "no difference worth
having" (a true difference of just more than the margin), over groups together too, and false "helps" when more seeds
are added until there is one; and the share of 95% intervals that hold the true difference. Runs are rounded as they are
stored, and of one comparison alone as coarsely as tables have them. Appends a row for each to
benchmarks/data/verdict_errors.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from csham.cli.common import print_markdown
from csham.study.grid import WORTHWHILE
from csham.study.pooling import estimate
from csham.study.statistics import ALPHA, STORED, Judgement, bootstrap_interval, holm, judge
from record import append_rows

ATTENTIONS = 5
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed (t, 2 degrees)": lambda rng, shape: rng.standard_t(2, size=shape),
    "skewed (lognormal)": lambda rng, shape: np.exp(0.5) - rng.lognormal(size=shape),
    "a tenth of runs fails": lambda rng, shape: rng.normal(size=shape) - 10 * (rng.random(shape) < 0.1),
    "4 wrong of 360 images": lambda rng, shape: rng.binomial(360, 0.99, size=shape) / 3.6,
}
NORMAL, SKEWED = "normal", "skewed (lognormal)"
LOOKS = ((5,), (5, 10), (3, 5, 10), (5, 8, 12, 16))


def main() -> None:
    """Simulate, print, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5000, help="of each kind; default 5000")
    parser.add_argument("--only", help="one of the questions; default all")
    words = parser.parse_args()
    studies, rows = words.studies, []
    for question, simulate, count in (
        ("false helps", false_helps, studies),
        ("false no difference", false_no_difference, studies),
        ("false helps, adding seeds", adding_seeds, studies),
        ("interval holds", coverage, min(studies, 2000)),  # a bootstrap takes 5 ms
        ("pooled interval holds", pooled_coverage, studies),
        ("false no difference, pooled", pooled_no_difference, studies),
        ("rounded", rounded, studies),
    ):
        if words.only not in (None, question):
            continue
        found = list(simulate(count))
        rows += [{"question": question, "studies": count} | row for row in found]
        names = [name for name in found[0] if any(row[name] != "" for row in found)]
        print_markdown(f"{question}, % of {count}", names, [[row[name] for name in names] for row in found])
    print(append_rows("verdict_errors", rows))


def row(
    noise: str, seeds: str, percent: float, *, whose: str = "", sd: float | str = "", how: str = ""
) -> dict[str, Any]:
    """Put one result together."""
    return {"noise": noise, "of": whose, "sd": sd, "seeds": seeds, "how": how, "percent": round(percent, 2)}


def differences(
    noise: str, studies: int, seeds: int, whose: str = "all networks", *, sd: float = 1.0, true: float = 0.0
) -> np.ndarray:
    """Draw differences of runs as they are stored, (studies, ATTENTIONS, seeds)."""
    rng = np.random.default_rng(seeds)
    draw = NOISES[noise]
    if whose == "the difference":
        return sd * draw(rng, (studies, ATTENTIONS, seeds))
    if whose == "the plain network":
        networks = 0.3 * rng.normal(size=(studies, ATTENTIONS, seeds))
    else:
        networks = draw(rng, (studies, ATTENTIONS, seeds))
    return stored(true + sd * networks) - stored(sd * draw(rng, (studies, 1, seeds)))


def stored(points: np.ndarray) -> np.ndarray:
    """Round accuracies as runs keep them."""
    return np.round(points / STORED) * STORED


def share(tables: Iterable[np.ndarray], wrong: Callable[[list[Judgement]], bool]) -> float:
    """Return in how many percent of the studies something wrong is said."""
    return 100 * float(np.mean([wrong(judge(table.tolist(), rounded=STORED)) for table in tables]))


def says(verdict: str) -> Callable[[list[Judgement]], bool]:
    """Return whether any comparison of a study ends so."""
    return lambda found: any(c.verdict == verdict for c in found)


def false_helps(studies: int) -> Iterator[dict[str, Any]]:
    """No attention does anything; a spread of many margins, so that there is no other verdict to give."""
    for noise in NOISES:
        for seeds in (3, 5, 10):
            tables = differences(noise, studies, seeds, sd=10)
            yield row(noise, str(seeds), share(tables, says("helps")), whose="all networks")
    for whose, sign in (("the plain network", 1), ("the difference", 1), ("the difference", -1)):
        for verdict in ("helps", "hurts"):
            tables = sign * differences(SKEWED, studies, 5, whose, sd=10)
            tail = "rare gains" if (sign < 0) != (whose == "the plain network") else "rare losses"
            yield row(SKEWED, "5", share(tables, says(verdict)), whose=f"{whose}, {tail}", how=verdict)


def false_no_difference(studies: int) -> Iterator[dict[str, Any]]:
    """All attentions are just worth having."""
    for sd in (0.1, 0.2, 0.3):
        for seeds in (3, 5, 10):
            tables = differences(NORMAL, studies, seeds, sd=sd, true=WORTHWHILE * 1.02)
            verdict = says("no difference worth having")
            yield row(NORMAL, str(seeds), share(tables, verdict), sd=sd, how="verdict")
            yield row(NORMAL, str(seeds), share(tables, within), sd=sd, how="an interval within the margin")


def within(found: list[Judgement]) -> bool:
    """Whether any interval lies within the margin."""
    return any(c.t_interval is not None and max(map(abs, c.t_interval)) < WORTHWHILE for c in found)


def adding_seeds(studies: int) -> Iterator[dict[str, Any]]:
    """No attention does anything; the study is extended and looked at again."""
    for looks in LOOKS:
        tables = differences(NORMAL, studies, looks[-1], sd=10)
        counts = [any(says("helps")(judge(table[:, :n].tolist(), rounded=STORED)) for n in looks) for table in tables]
        yield row(NORMAL, ", ".join(map(str, looks)), 100 * float(np.mean(counts)))


def coverage(studies: int) -> Iterator[dict[str, Any]]:
    """Intervals of one comparison."""
    for noise in (NORMAL, SKEWED):
        for seeds in (3, 5, 10, 20):
            tables = differences(noise, studies, seeds)[:, 0, :]
            found = [judge([table.tolist()], rounded=STORED)[0] for table in tables]
            for name, intervals in (
                ("Student-t", [c.t_interval for c in found]),
                ("BCa", [bootstrap_interval(table) for table in tables]),
            ):
                held = [low <= 0 <= high for low, high in filter(None, intervals)]
                yield row(noise, str(seeds), 100 * float(np.mean(held)), how=name)


def pooled_coverage(studies: int) -> Iterator[dict[str, Any]]:
    """Intervals over groups whose true differences scatter or do not; a difference of two runs scatters by 0.5."""
    rng = np.random.default_rng(0)
    for groups in (2, 3, 5, 7, 20):
        for between in (0.0, 0.3):
            for seeds in (3, 5, 10):
                truths = between * rng.normal(size=(studies, groups, 1))
                tables = truths + 0.5 * rng.normal(size=(studies, groups, seeds))
                intervals = [estimate(means, deviations, seeds).interval for means, deviations in zip(
                    tables.mean(2), tables.std(2, ddof=1), strict=True
                )]  # fmt: skip
                held = [low <= 0 <= high for low, high in intervals]
                how = (
                    f"{groups} groups, {between} between them, half as wide as {np.median(np.diff(intervals)) / 2:.2f}"
                )
                yield row(NORMAL, str(seeds), 100 * float(np.mean(held)), sd=0.5, how=how)


def pooled_no_difference(studies: int) -> Iterator[dict[str, Any]]:
    """All attentions are just worth having, over five groups whose true differences scatter by 0.1."""
    rng = np.random.default_rng(0)
    truths = WORTHWHILE + 0.1 * rng.normal(size=(studies, ATTENTIONS, 5, 1))
    for seeds in (5, 10):
        tables = truths + 0.5 * rng.normal(size=(studies, ATTENTIONS, 5, seeds))
        alone, corrected = [], []
        for means, deviations in zip(tables.mean(3), tables.std(3, ddof=1), strict=True):
            ps = [estimate(*one, seeds).p_equivalent(WORTHWHILE) for one in zip(means, deviations, strict=True)]
            inside = [p < ALPHA / 2 for p in ps]
            alone.append(any(inside))
            corrected.append(any(i and (p or 0.0) < ALPHA for i, p in zip(inside, holm(ps), strict=True)))
        yield row(NORMAL, str(seeds), 100 * float(np.mean(corrected)), sd=0.5, how="verdict")
        yield row(NORMAL, str(seeds), 100 * float(np.mean(alone)), sd=0.5, how="an interval within the margin")


def rounded(studies: int) -> Iterator[dict[str, Any]]:
    """One comparison alone, of runs rounded to steps; the worst of several deviations, of both networks or of one."""
    for step in (STORED, 0.1, 1.0):
        for seeds in (3, 5, 6, 10):
            nothing, something = [], []
            for sd in (0.2 * step, 0.5 * step, step, 3 * step):
                for plain_sd in (0.0, sd):
                    rng = np.random.default_rng(seeds)
                    level = rng.uniform(50, 90, (studies, 1))
                    network, plain = (level + scale * rng.normal(size=(studies, seeds)) for scale in (sd, plain_sd))
                    kept = [np.round(values / step) * step for values in (network + WORTHWHILE, network, plain)]
                    found = [
                        [judge([gains], margin, step)[0].verdict for gains in values - kept[2]]
                        for values, margin in ((kept[0], WORTHWHILE), (kept[1], 0.0))
                    ]
                    nothing.append(found[0].count("no difference worth having"))
                    something.append(studies - found[1].count("cannot tell yet"))
            for how, counts in (("no difference worth having", nothing), ("helps or hurts", something)):
                yield row(
                    NORMAL, str(seeds), 100 * max(counts) / studies, sd=f"up to {3 * step:g}", how=f"{how}, {step:g}"
                )


if __name__ == "__main__":
    main()
