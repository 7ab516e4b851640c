"""Verdicts on a table of runs of any trainer and task: the statistics of a study without its store.

Every variant is compared with the baseline of its group, by seed, and only by seeds that both have. Differences are
gains: where lower is better, the baseline's value minus the variant's. Holm's correction goes over all comparisons of
the table, of all its groups and metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from csham.errors import UserError
from csham.settings import check_choice, check_known
from csham.study.comparison_statistics import computed
from csham.study.findings import Comparison, Spread, plain_values
from csham.study.grid import WORTHWHILE
from csham.study.headline import Words, headline
from csham.study.pooling import Pooled, pool, pooled_sentence
from csham.study.results import spread
from csham.study.run_table import Row, RunTable, read_runs
from csham.study.statistics import compare
from csham.words import counted, some

__all__ = ["Measure", "MetricVerdict", "TableVerdict", "Unit", "verdict"]

Unit = Literal["percent", "fraction", "plain"]
Cell = tuple[str, str, str]  # group, variant, seed

_BASELINES = ("plain", "none", "baseline", "vanilla", "base", "control")
_VARIANTS = ("variant", "name", "model", "attention", "label", "method")
_MISSING = ("na", "n/a", "nan", "null", "none", "-", "<na>", "nat")
_USUALLY_LOW = re.compile(
    r"loss|err|mae|mse|fid|perplexity|latency|runtime|duration|memory|flops|params"
    r"|(?<![a-z])(ms|seconds|minutes|hours|time|macs|wer|cer|eer|nll|ppl|brier|ece|lpips)(?![a-z])",
    re.IGNORECASE,
)
_NAMED = 6  # more than these are counted
_SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric of a table, and how it is read.

    Attributes:
        name: Its column.
        better: Direction of better values.
        unit: ``"percent"``, ``"fraction"`` (of one, shown in percent), or ``"plain"``, a number in a unit of its own.
        worthwhile: Least gain worth having; percentage points unless ``unit`` is ``"plain"``.
        rounded: Step that values were rounded to, as they are shown; 0 where they were not.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: Unit
    worthwhile: float
    rounded: float

    @property
    def factor(self) -> float:
        """Number that values of the table are multiplied with to be shown."""
        return _factor(self.unit)

    @property
    def digits(self) -> int:
        """Decimals that tell gains worth having apart."""
        return max(2, 1 - math.floor(math.log10(self.worthwhile))) if self.worthwhile else 4

    @property
    def word(self) -> str:
        """Word behind its differences."""
        return "" if self.unit == "plain" else "points"


@dataclass(frozen=True, kw_only=True)
class MetricVerdict:
    """What a table says by one metric.

    Attributes:
        measure: The metric.
        headline: One to three sentences.
        comparisons: One for each group and variant but the baseline; ``backbone`` is the group, or empty.
        values: Spread over seeds by group and variant, the baseline too.
        pooled: Each variant over the groups, where there are several.
    """

    measure: Measure
    headline: str
    comparisons: list[Comparison]
    values: dict[tuple[str, str], Spread | None]
    pooled: list[Pooled]


@dataclass(frozen=True, kw_only=True)
class TableVerdict:
    """What a table says.

    Attributes:
        table: Its name.
        baseline: The variant that the others are compared with.
        metrics: In the order asked for.
        notes: What a reader should know before relying on it: what was left out, and how values were read.
    """

    table: str
    baseline: str
    metrics: list[MetricVerdict]
    notes: list[str]

    @property
    def headline(self) -> str:
        """The sentences of all metrics, each with its name where there are several."""
        if len(self.metrics) == 1:
            return self.metrics[0].headline
        return "\n".join(f"{one.measure.name}: {one.headline}" for one in self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON's values."""
        metrics = [
            {
                **vars(one.measure),
                "headline": one.headline,
                "values": [
                    {"group": group, "variant": variant, **(vars(values) if values else {"n": 0})}
                    for (group, variant), values in one.values.items()
                ],
                "comparisons": [_comparison_dict(comparison) for comparison in one.comparisons],
                "pooled": [vars(estimate) for estimate in one.pooled],
            }
            for one in self.metrics
        ]
        content: dict[str, Any] = plain_values(
            {"table": self.table, "baseline": self.baseline, "metrics": metrics, "notes": self.notes}
        )
        return content


def verdict(
    table: Any,
    *,
    metric: str | Sequence[str],
    variant: str | None = None,
    seed: str = "seed",
    baseline: str | None = None,
    groups: str | Sequence[str] = (),
    worthwhile: float | Mapping[str, float] | None = None,
    unit: Unit | Mapping[str, Unit] | None = None,
    lower_is_better: str | Iterable[str] = (),
    higher_is_better: str | Iterable[str] = (),
    rounded: float | None = None,
) -> TableVerdict:
    """Judge the variants of a table of runs against its baseline.

    Args:
        table: A row for each run, as :func:`csham.study.run_table.read_runs` takes it: a path of CSV, TSV, JSON lines
            or Parquet, or a data frame.
        metric: Column of the metric, or several.
        variant: Column of what is compared; None finds one named variant, name, model, attention, label or method.
        seed: Column by whose values runs are paired: a seed, or a fold.
        baseline: The variant that the others are compared with; None finds one named plain, none, baseline, ...
        groups: Columns within whose values variants are compared, such as the backbone or the dataset.
        worthwhile: Least gain worth having, in percentage points, or of a plain metric in its unit; of all, or by
            metric. Of plain metrics it has no default.
        unit: How values are read, of all or by metric; None takes values from 0 to 1 for fractions of one, others up to
            100 for percent, and those of which lower is better for plain numbers.
        lower_is_better: Metrics of which less is better.
        higher_is_better: Metrics of which more is, although their names sound otherwise.
        rounded: Step that the values were rounded to, as the table has them, 0 where they are exact; None takes the
            last decimal of each column, or the precision of float32 where all its values are that, and whole numbers
            for exact unless they are percents.

    Raises:
        UserError: A column is not there, a value is no number, runs are there twice, or no seed is shared.
    """
    if rounded is not None and not (_is_number(rounded) and rounded >= 0):
        raise UserError(f"rounded must be a step of the values, or 0 where they are exact, got {rounded!r}.")
    content = read_runs(table)
    names, lower, higher = _listed(metric), _listed(lower_is_better), _listed(higher_is_better)
    grouping = _listed(groups)
    variant = variant or _variant_column(content, [seed, *names, *grouping])
    if not names:
        raise UserError(f"{content.name}: name the column of a metric. There are {', '.join(content.columns)}.")
    check_known(f"column of {content.name}", (variant, seed, *grouping, *names), content.columns)
    check_known("metric", (*lower, *higher, *_keys_of(worthwhile), *_keys_of(unit)), names)
    notes: list[str] = []
    rows = _rows(content, variant, seed, grouping, names, notes)
    base = _baseline(content, baseline, list(dict.fromkeys(cell[1] for cell in rows)))
    values = {name: _values(content, name, rows, notes) for name in names}
    measures = [
        _measure(content, name, values[name], lower, higher, _of(worthwhile, name), _of(unit, name), rounded, notes)
        for name in names
    ]
    _note_pairing(values, base, notes)
    metrics = _judged(content, measures, values, rows, base)
    if rounded is None:
        _note_rounding(metrics, notes)
    _note_together(metrics, notes)
    return TableVerdict(table=content.name, baseline=base, metrics=metrics, notes=notes)


def _listed(names: str | Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names)) if isinstance(names, Iterable) and not isinstance(names, str) else [names]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _keys_of(setting: Any) -> Iterable[str]:
    return setting if isinstance(setting, Mapping) else ()


def _of(setting: Any, name: str) -> Any:
    return setting.get(name) if isinstance(setting, Mapping) else setting


def _variant_column(content: RunTable, others: Iterable[str]) -> str:
    likely = [column for column in content.columns if column.lower() in _VARIANTS and column not in others]
    if len(likely) == 1:
        return likely[0]
    why = f"it could be {' or '.join(likely)}" if likely else f"there are {', '.join(content.columns)}"
    raise UserError(f"{content.name}: which column names the variants? Say it with --variant; {why}.")


def _rows(
    content: RunTable, variant: str, seed: str, grouping: Sequence[str], names: Sequence[str], notes: list[str]
) -> dict[Cell, Row]:
    """Return the row of each group, variant and seed; what is repeated with the same numbers counts once."""
    rows: dict[Cell, Row] = {}
    repeated = 0
    for row in content.rows:
        for column in (variant, seed, *grouping):
            value = row.values.get(column)
            if _is_missing(value) if column == seed else _is_empty(value):
                raise UserError(f"{row.place} of {content.name} has no {column}. Fill it in, or remove the row.")
        group = ", ".join(_word(row.values[column]) for column in grouping)
        cell = (group, _word(row.values[variant]), _word(row.values[seed]))
        if cell not in rows:
            rows[cell] = row
        elif any(_word(row.values.get(name)) != _word(rows[cell].values.get(name)) for name in names):
            raise UserError(
                f"{content.name} has two runs of {_shown(cell)}, with different numbers: {rows[cell].place} and "
                f"{row.place}. Keep the row that counts, of one epoch and one test set; runs that were trained apart, "
                "on other backbones or datasets, need a column that says so, named with --group."
            )
        else:
            repeated += 1
    if repeated:
        notes.append(
            f"{counted(repeated, 'row')} repeated {'another' if repeated == 1 else 'others'} and counted once."
        )
    return rows


def _baseline(content: RunTable, baseline: str | None, variants: Sequence[str]) -> str:
    if len(variants) < 2:
        raise UserError(f"{content.name} holds one variant only, {variants[0]}: there is nothing to compare.")
    if baseline is not None:
        check_choice("variant", baseline, variants)
        return baseline
    likely = [name for name in variants if name.lower() in _BASELINES]
    if len(likely) == 1:
        return likely[0]
    named = ", ".join(variants[:20])
    raise UserError(
        f"{content.name}: which variant are the others compared with? Say it with --baseline; there are {named}."
    )


def _values(content: RunTable, name: str, rows: Mapping[Cell, Row], notes: list[str]) -> dict[Cell, float]:
    """Return the numbers of one metric, without runs that have none."""
    values, missing = {}, []
    for cell, row in rows.items():
        value = row.values.get(name)
        if _is_missing(value):
            missing.append(_shown(cell))
        else:
            values[cell] = _number(content, name, row, value)
    if not values:
        raise UserError(f"{content.name} has no number in column {name!r}.")
    if missing:
        notes.append(f"{counted(len(missing), 'run')} without {name} left out: {some(missing, _NAMED, '; ')}.")
    return values


def _number(content: RunTable, name: str, row: Row, value: Any) -> float:
    number = math.nan
    if isinstance(value, Real | Decimal | str) and not isinstance(value, bool):
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise UserError(
            f"{row.place} of {content.name}: {name} is {ascii(value)[:60]}, which is no finite number. Write one with "
            "a point for decimals and without a unit; leave the field empty where a run failed."
        )
    return number


def _measure(
    content: RunTable,
    name: str,
    values: Mapping[Cell, float],
    lower: Sequence[str],
    higher: Sequence[str],
    worthwhile: float | None,
    unit: Unit | None,
    rounded: float | None,
    notes: list[str],
) -> Measure:
    if name in lower and name in higher:
        raise UserError(f"{name}: either lower or higher is better.")
    if name not in lower and name not in higher and _USUALLY_LOW.search(name):
        raise UserError(
            f"is lower better for {name}? Say --lower-is-better {name}, or --higher-is-better {name} if not."
        )
    unit = unit or ("plain" if name in lower else _unit(content, name, values, notes))
    check_choice("unit", unit, get_args(Unit))
    if worthwhile is None and unit == "plain":
        raise UserError(
            f"how large a gain of {name} would be worth having? Say it in its own unit: --worthwhile {name}=NUMBER."
        )
    margin = WORTHWHILE if worthwhile is None else worthwhile
    if not (_is_number(margin) and (margin == 0 or margin >= _SMALLEST)):
        raise UserError(
            f"worthwhile of {name} must be 0, or {_SMALLEST:g} or more, got {margin!r}. Give smaller numbers in a "
            "smaller unit, such as ms for s."
        )
    return Measure(
        name=name,
        better="lower" if name in lower else "higher",
        unit=unit,
        worthwhile=float(margin),
        rounded=_factor(unit) * (_step(values.values(), unit) if rounded is None else rounded),
    )


def _factor(unit: Unit) -> float:
    return 100.0 if unit == "fraction" else 1.0


def _step(values: Iterable[float], unit: Unit) -> float:
    """Return the step between numbers of so many decimals, or of float32 where all are.

    Whole numbers are counts, which are exact, unless they are percents.
    """
    numbers = np.array(list(values))
    decimals = max(-int(Decimal(f"{number:.12g}").as_tuple().exponent) for number in numbers)
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    largest = float(np.spacing(np.abs(single).max())) if (single == numbers).all() else 0.0
    return max(10.0**-decimals if decimals > 0 or unit == "percent" else 0.0, largest)


def _unit(content: RunTable, name: str, values: Mapping[Cell, float], notes: list[str]) -> Unit:
    """Tell fractions of one, percent and other numbers apart by the values."""
    low, high = min(values.values()), max(values.values())
    if low < 0 or high > 100:
        return "plain"
    if high <= 1:
        notes.append(
            f"{name} was read as fractions of one, and is shown in percent, gains and what is worth having in "
            "percentage points; --unit percent takes it as percent."
        )
        return "fraction"
    if low <= 1:
        raise UserError(
            f"{content.name}: {name} goes from {low:g} to {high:g}. Are these fractions of one beside percent? Write "
            f"all in one unit, or say --unit {name}=percent (or plain) if they are."
        )
    return "percent"


def _note_pairing(values: Mapping[str, Mapping[Cell, float]], base: str, notes: list[str]) -> None:
    """Say which runs have no partner, of each metric if it is not the same of all."""
    alone = {name: _alone(cells, base) for name, cells in values.items()}
    same = len({tuple(cells) for cells in alone.values()}) == 1
    for name in list(alone)[:1] if same else alone:
        if found := alone[name]:
            of = "" if same else f" in {name}"
            named = some(found, _NAMED, "; ")
            notes.append(f"{counted(len(found), 'run')} without a partner of the same seed{of} left out: {named}.")


def _alone(cells: Iterable[Cell], base: str) -> list[str]:
    variants: dict[tuple[str, str], set[str]] = {}
    for group, variant, seed in cells:
        variants.setdefault((group, seed), set()).add(variant)
    return [
        _shown((group, variant, seed))
        for group, variant, seed in cells
        if len(variants[group, seed]) < 2 or base not in variants[group, seed]
    ]


def _note_rounding(metrics: Iterable[MetricVerdict], notes: list[str]) -> None:
    """Say where whole percents are not taken as exact, and where gains differ on paper and count as equal."""
    for one in metrics:
        if one.measure.unit == "percent" and one.measure.rounded == 1:
            notes.append(
                f"{one.measure.name} has whole percents, which were taken as rounded. Give it with decimals, or say "
                "--rounded 0 if they are exact, such as counts of 100 images."
            )
        elif any(found.sd == 0 and len(set(found.differences)) > 1 for found in one.comparisons):
            notes.append(
                f"{one.measure.name} was rounded to steps of {one.measure.rounded:.2g}, and gains that differ by no "
                "more than rounding can make of equal ones count as equal. Give it with more decimals."
            )


def _note_together(metrics: Iterable[MetricVerdict], notes: list[str]) -> None:
    """Say which groups look as if they were measured on the same runs."""
    if names := dict.fromkeys(one.name for metric in metrics for one in metric.pooled if one.together):
        notes.append(
            f"the gains of {some(names, _NAMED)} go together over groups, seed by seed: the interval over groups is "
            "that over seeds. Groups are to be trained apart, as backbones and datasets are; the epochs or test sets "
            "of one run are not."
        )


def _judged(
    content: RunTable,
    measures: Sequence[Measure],
    values: Mapping[str, Mapping[Cell, float]],
    rows: Iterable[Cell],
    base: str,
) -> list[MetricVerdict]:
    variants = list(dict.fromkeys((group, variant) for group, variant, _ in rows))
    wanted = [(measure, *pair) for measure in measures for pair in variants if pair[1] != base]
    pairs = [_paired(measure, values[measure.name], group, variant, base) for measure, group, variant in wanted]
    if not any(pairs):
        raise UserError(
            f"no variant of {content.name} shares a seed with {base}. Verdicts are over pairs: run each seed with and "
            "without what is compared."
        )
    judged = compare(
        [list(differences.values()) for differences in pairs],
        [measure.worthwhile for measure, _, _ in wanted],
        [measure.word for measure, _, _ in wanted],
        [measure.rounded for measure, _, _ in wanted],
    )
    found: dict[str, list[Comparison]] = {measure.name: [] for measure in measures}
    for (measure, group, variant), differences, difference in zip(wanted, pairs, judged, strict=True):
        found[measure.name].append(
            Comparison(
                **vars(difference),
                label=f"{group} + {variant}" if group else variant,
                name=variant,
                backbone=group,
                against=f"{group} + {base}" if group else base,
                instead_of=None,
                seeds=tuple(differences),
                differences=tuple(differences.values()),
                controls=(),
                more=computed(tuple(differences.values())),
            )
        )
    pooled = pool([(found[measure.name], measure.worthwhile) for measure in measures])
    return [
        _of_metric(measure, found[measure.name], values[measure.name], variants, base, together)
        for measure, together in zip(measures, pooled, strict=True)
    ]


def _of_metric(
    measure: Measure,
    comparisons: list[Comparison],
    values: Mapping[Cell, float],
    variants: Iterable[tuple[str, str]],
    base: str,
    pooled: list[Pooled],
) -> MetricVerdict:
    spreads = {pair: _spread(measure, values, *pair) for pair in variants}
    words = headline(
        comparisons,
        measure.worthwhile,
        words=Words("variants", base, measure.word),
        begun={c.label for c in comparisons if spreads[c.backbone, c.name]},
    )
    return MetricVerdict(
        measure=measure,
        headline=" ".join(filter(None, [words, pooled_sentence(pooled, measure.word)])),
        comparisons=comparisons,
        values=spreads,
        pooled=pooled,
    )


def _paired(measure: Measure, values: Mapping[Cell, float], group: str, variant: str, base: str) -> dict[str, float]:
    """Return gains by seed, where both have one."""
    sign = -measure.factor if measure.better == "lower" else measure.factor
    ours = {seed: value for (g, v, seed), value in values.items() if (g, v) == (group, variant)}
    # What lies beyond comes from subtracting.
    return {
        seed: float(f"{sign * (value - values[group, base, seed]):.12g}")
        for seed, value in ours.items()
        if (group, base, seed) in values
    }


def _spread(measure: Measure, values: Mapping[Cell, float], group: str, variant: str) -> Spread | None:
    return spread(
        {seed: measure.factor * value for (g, v, seed), value in values.items() if (g, v) == (group, variant)}
    )


def _comparison_dict(comparison: Comparison) -> dict[str, Any]:
    hidden = ("instead_of", "controls", "label", "name", "backbone", "against")
    content = {name: value for name, value in comparison.to_dict().items() if name not in hidden}
    return {"group": comparison.backbone, "variant": comparison.name, **content}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _is_missing(value: Any) -> bool:
    return _is_empty(value) or str(value).strip().lower() in _MISSING


def _word(value: Any) -> str:
    """Write a value of a column so that 0, 0.0 and "0" are one seed, and 2**62 and 2**62 + 1 are two."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real | Decimal) and not isinstance(value, bool) and float(value).is_integer():
        return str(math.floor(value))
    text = str(value).strip()
    return text.removesuffix(".0") if re.fullmatch(r"-?[0-9]{1,15}\.0", text) else text


def _shown(cell: Cell) -> str:
    group, variant, seed = cell
    return f"{f'{group}, ' if group else ''}{variant}, seed {seed}"
