"""The first sentences of a study: what helps, what hurts, what makes no difference, and what is still open."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from csham.study.findings import AgainstControl, Comparison
from csham.study.statistics import FEW, Verdict, extremes, with_sign
from csham.words import counted

__all__ = ["Words", "headline"]

_NAMED = 3  # more than these are counted


@dataclass(frozen=True)
class Words:
    """Names of what a headline speaks of.

    Attributes:
        kind: Of what is compared, in the plural.
        plain: Of what it is compared with.
        unit: Word behind differences; may be empty.
    """

    kind: str = "attentions"
    plain: str = "the plain network"
    unit: str = "points"


def headline(
    comparisons: Sequence[Comparison],
    worthwhile: float,
    missing: int = 0,
    failed: int = 0,
    cells: int = 0,
    *,
    words: Words | None = None,
    begun: Collection[str] = (),
) -> str:
    """Say what a study found.

    Budget controls are spoken of where they do as well as what helps.

    Args:
        comparisons: All of the study.
        worthwhile: In percentage points.
        missing: Runs still to come.
        failed: Runs that failed.
        cells: Runs of the whole study.
        words: Names of what is compared; None speaks of a study's attentions.
        begun: Labels of the networks that have a run, be it of a seed that the plain network has not.
    """
    words = words or Words()
    attentions = [c for c in comparisons if c.instead_of is None]
    sentences = [
        *_decided(attentions, "helps", words),
        *_decided(attentions, "hurts", words),
        *_no_difference(attentions, worthwhile, words),
        *_undecided([c for c in attentions if c.n], attentions, words),
        *_unpaired([c for c in attentions if not c.n], begun, words),
        *_controls(attentions),
        *_incomplete(missing, failed, cells),
    ]
    return " ".join(sentences) or "There is nothing to compare: the study has plain networks only."


def _decided(attentions: Iterable[Comparison], verdict: Verdict, words: Words) -> list[str]:
    found = sorted((c for c in attentions if c.verdict == verdict), key=lambda c: -abs(c.mean or 0.0))
    if not found:
        return []
    named = [f"{c.name} {verdict}{_space(c.backbone)}: {_numbers(c, words)}" for c in found[:_NAMED]]
    rest = len(found) - _NAMED
    others = f"; {'so does one more' if rest == 1 else f'so do {rest} more'}" if rest > 0 else ""
    caution = _few(found)
    return ["; ".join(named) + others + caution + "."]


def _numbers(c: Comparison, words: Words) -> str:
    gain = f"{with_sign(c.mean or 0.0)}{_space(words.unit)}"
    seeds = counted(c.n, "seed")
    if c.t_interval is None:
        least, most = extremes(c.differences)
        return f"{gain} with each of {seeds}" if least == most else f"{gain} ({least} to {most}, {seeds})"
    low, high = c.t_interval
    return f"{gain} (95% {with_sign(low)} to {with_sign(high)}, {seeds})"


def _few(found: Iterable[Comparison]) -> str:
    return "; fewer than five seeds can say little" if min(c.n for c in found) < FEW else ""


def _no_difference(attentions: Iterable[Comparison], worthwhile: float, words: Words) -> list[str]:
    found = [c for c in attentions if c.verdict == "no difference worth having"]
    if not found:
        return []
    named = _names(found, words)
    verb = "makes" if len(found) == 1 else "make"
    margin = f"{_what_is_within(found)} within ±{worthwhile:g}{_space(words.unit)}"
    return [f"{named} {verb} no difference worth having ({margin}){_few(found)}."]


def _what_is_within(found: Iterable[Comparison]) -> str:
    """Say what lies within the margin: the intervals or, without spread, every seed."""
    measured = {c.t_interval is not None for c in found}
    return "95%, or every seed," if len(measured) > 1 else "95%" if measured.pop() else "every seed"


def _names(found: Sequence[Comparison], words: Words) -> str:
    """Name a few networks, with their backbones, or count many."""
    if len(found) > _NAMED:
        return f"{_count(found, words)}{_on(found)}"
    several = len({c.backbone for c in found}) > 1
    names = [f"{c.name} on {c.backbone}" if several else c.name for c in found]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return listed if several else f"{listed}{_on(found[:1])}"


def _count(found: Sequence[Comparison], words: Words) -> str:
    names = len({c.name for c in found})
    return f"{len(found)} {words.kind}" if names == len(found) else f"{len(found)} comparisons of {names} {words.kind}"


def _on(found: Iterable[Comparison]) -> str:
    backbones = ", ".join(dict.fromkeys(c.backbone for c in found))
    return f" on {backbones}" if backbones else ""


def _space(word: str) -> str:
    return f" {word}" if word else ""


def _undecided(paired: Iterable[Comparison], attentions: Sequence[Comparison], words: Words) -> list[str]:
    found = [c for c in paired if c.verdict == "cannot tell yet"]
    if not found:
        return []
    seeds = sorted({c.n for c in found})
    span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "s" if seeds[-1] > 1 else ""
    told = f"{_whose(found, attentions, words)} cannot be told from {words.plain} with {span} seed{plural}"
    return [f"{told}{_outlook(found)}."]


def _unpaired(found: Sequence[Comparison], begun: Collection[str], words: Words) -> list[str]:
    """Speak of networks that share no seed with the plain one: those without a run, and those whose run waits."""
    alone = [c for c in found if c.label in begun]
    unmeasured = [c for c in found if c.label not in begun]
    sentences = []
    if alone:
        sentences.append(f"{_names(alone, words)} cannot be compared with {words.plain} yet: no seed has both.")
    if unmeasured:
        verb = "has" if len(unmeasured) == 1 else "have"
        sentences.append(f"{_names(unmeasured, words)} {verb} not been measured yet.")
    return sentences


def _whose(measured: Sequence[Comparison], attentions: Sequence[Comparison], words: Words) -> str:
    if len(attentions) == 1:
        return f"{attentions[0].name}{_on(attentions)}"
    if len(measured) == len(attentions):
        return f"Each of {_count(attentions, words)}{_on(attentions)}"
    return _names(measured, words)


def _outlook(measured: Sequence[Comparison]) -> str:
    more = [c.seeds_needed - c.n for c in measured if c.seeds_needed is not None]
    if not more:
        return ", and no number of seeds that anyone would run is likely to change that"
    counts = f"{min(more)}" if min(more) == max(more) else f"{min(more)} to {max(more)}"
    if len(more) == len(measured):
        return f"; about {counts} more could settle it"
    others = "the other" if len(measured) - len(more) == 1 else "the others"
    return (
        f"; about {counts} more could settle {len(more)} of them, and no number that anyone would run is likely to "
        f"settle {others}"
    )


def _controls(attentions: Iterable[Comparison]) -> list[str]:
    helped = [(c, control) for c in attentions if c.verdict == "helps" for control in c.controls]
    return [_control(c, control) for c, control in helped if control.at_least_as_good][:_NAMED]


def _control(c: Comparison, control: AgainstControl) -> str:
    larger = control.label.partition(" (")[0]
    gain = f" ({with_sign(control.control_mean)} points)" if control.control_mean is not None else ""
    beaten = control.t_interval is not None and control.t_interval[1] < 0
    how = f"does better than {c.name}" if beaten else f"cannot be told from {c.name}"
    return f"But a plain {larger}, which trains in the same time, {how}{gain}."


def _incomplete(missing: int, failed: int, cells: int) -> list[str]:
    parts = [f"{missing} of {cells} runs are still to come"] if missing else []
    parts += [f"{failed} of {cells} runs failed"] if failed else []
    return [f"{' and '.join(parts)}."] if parts else []
