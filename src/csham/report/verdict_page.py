"""Page, pictures and tables of the verdicts on a table of runs, as a study's report has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from csham.report.drawing import looks_of
from csham.report.study_page import inlined, render
from csham.report.study_pictures import Gains, Picture, draw_gains
from csham.report.study_report import check_place, listing, replace_report, report_files
from csham.report.study_tables import MARKS, shown
from csham.report.tables import DASH, Column, Table, fixed, interval, p_value, signed
from csham.study.comparison_statistics import STATISTICS, Statistic
from csham.study.findings import Comparison, Spread
from csham.study.pooling import Pooled
from csham.study.verdict import Measure, MetricVerdict, TableVerdict
from csham.words import counted

__all__ = ["verdict_page", "verdict_pictures", "verdict_tables", "write_verdict"]

_SECTIONS = [
    ("verdicts", "Verdicts"),
    ("variants", "Variants"),
    ("runs", "Every run"),
    ("method", "What the numbers mean"),
    ("files", "Files"),
]


def write_verdict(result: TableVerdict, output: Path | str) -> Path:
    """Write ``index.html``, ``figures/`` and ``tables/``; a report that is there already is replaced as a whole.

    Args:
        result: Verdicts of :func:`csham.verdict`.
        output: Folder of the report.

    Returns:
        The page.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    folder = Path(output)
    check_place(folder)
    tables, pictures = verdict_tables(result), verdict_pictures(result)
    contents = report_files(tables, pictures, "tables/verdict.xlsx")
    page = render("verdict.html", verdict_page(result, tables, pictures) | {"files": listing(contents)})
    return replace_report(folder, page, contents)


def verdict_tables(result: TableVerdict) -> list[Table]:
    """Return the tables of a verdict: comparisons, what is pooled of them, variants and runs."""
    return [_verdict_table(result), _pooled_table(result), _variant_table(result), _run_table(result)]


def verdict_pictures(result: TableVerdict) -> list[Picture]:
    """Return a picture for each metric that has a pair."""
    return [picture for one in result.metrics if (picture := _picture(one, result)) is not None]


class _Compared(NamedTuple):
    """Row of the table of verdicts."""

    measure: Measure
    comparison: Comparison


class _PooledRow(NamedTuple):
    """Row of the table of what is pooled."""

    measure: Measure
    pooled: Pooled


class _Variant(NamedTuple):
    """Row of the table of variants."""

    measure: Measure
    group: str
    variant: str
    values: Spread


class _Run(NamedTuple):
    """Row of the table of runs."""

    measure: Measure
    group: str
    variant: str
    seed: str
    value: float


def verdict_page(result: TableVerdict, tables: Sequence[Table], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return what the template of a verdict reads, but for the files."""
    verdicts, pooled, variants, runs = tables
    measures = [one.measure for one in result.metrics]
    compared = [one for metric in result.metrics for one in metric.comparisons]
    margins = {f"±{measure.worthwhile:g} {measure.word}".rstrip() for measure in measures}
    facts = [
        f"{counted(len(variants.items) // len(measures), 'variant')} against {result.baseline}",
        counted(len({run.seed for run in runs.items}), "seed"),
        *(f"{measure.name}, {measure.better} is better" for measure in measures),
    ]
    return {
        "kind": "verdict",
        "title": Path(result.table).name,
        "facts": " · ".join(facts),
        "headline": result.headline,
        "cautions": [],
        "warnings": result.notes,
        "sections": _SECTIONS,
        "differences": [inlined(picture) for picture in pictures],
        "verdicts": verdicts,
        "pooled": pooled,
        "variants": variants,
        "runs": runs,
        "sentences": [
            {"label": f"{metric.measure.name}, {one.label}" if len(measures) > 1 else one.label, "text": one.sentence}
            for metric in result.metrics
            for one in metric.comparisons
        ],
        "comparisons": len(compared),
        "margin": margins.pop() if len(margins) == 1 else "what is worth having of the metric",
    }


def _picture(one: MetricVerdict, result: TableVerdict) -> Picture | None:
    measure = one.measure
    unit = ", percentage points" if measure.word else ""
    lower = " (lower is better)" if measure.better == "lower" else ""
    words = Gains(
        name=f"gains-{re.sub('[^A-Za-z0-9]+', '-', measure.name).strip('-') or 'metric'}-{result.metrics.index(one)}",
        title=f"Gain of {measure.name} over {result.baseline}",
        axis=f"gain of {measure.name}{lower} over {result.baseline}{unit}",
        caption=f"Paired gains of {measure.name}{unit}.",
        subject="variant",
        unit=measure.word,
        digits=measure.digits,
    )
    variants = looks_of(dict.fromkeys(comparison.name for comparison in one.comparisons))
    pooled = [_as_comparison(estimate, result.baseline) for estimate in one.pooled]
    looks = {comparison.label: variants[comparison.name] for comparison in (*one.comparisons, *pooled)}
    return draw_gains(one.comparisons, looks, measure.worthwhile, words, pooled)


def _as_comparison(one: Pooled, baseline: str) -> Comparison:
    """Return a row of the picture, with a dot for each group where others have one for each seed."""
    others: dict[str, Any] = {field.name: None for field in fields(Comparison)}
    known: dict[str, Any] = {
        "n": len(one.groups),
        "mean": one.mean,
        "t_interval": one.t_interval,
        "verdict": one.verdict,
        "label": f"{one.name}, over {len(one.groups)} groups",
        "name": one.name,
        "backbone": "",
        "against": f"{baseline}, over groups",
        "seeds": one.groups,
        "differences": one.means,
        "more": {},
    }
    return Comparison(**others | known)


def _named(result: TableVerdict, group: Callable[[Any], str], variant: Callable[[Any], str]) -> list[Column]:
    """Make the columns that say what a row is of; readers see those in which rows differ."""
    grouped = any(group for one in result.metrics for group, _ in one.values)
    columns = [
        ("metric", lambda row: row.measure.name, len(result.metrics) > 1),
        ("group", group, grouped),
        ("variant", variant, True),
    ]
    return [Column(key if seen else "", value, keys=(key,), numeric=False) for key, value, seen in columns]


def _verdict_table(result: TableVerdict) -> Table:
    columns = [
        *_named(result, lambda row: row.comparison.backbone, lambda row: row.comparison.name),
        Column("", lambda row: result.baseline, keys=("against",)),
        Column(
            "verdict",
            lambda row: row.comparison.verdict,
            keys=("verdict",),
            mark=lambda row: MARKS[row.comparison.verdict],
            numeric=False,
            help="With differences that are not worth having below "
            + ", ".join(f"{m.worthwhile:g} {m.word}".rstrip() for m in (one.measure for one in result.metrics)),
        ),
        *(
            Column(
                statistic.title,
                partial(_statistic, statistic.name),
                keys=statistic.keys,
                show=partial(_shown, statistic),
                help="" if statistic.name == "mean" else statistic.help,
            )
            for statistic in STATISTICS.values()
        ),
        Column("", lambda row: row.comparison.sentence, keys=("sentence",)),
    ]
    rows = [_Compared(one.measure, comparison) for one in result.metrics for comparison in one.comparisons]
    return Table("verdicts", f"Each variant against {result.baseline}, gains over paired seeds.", columns, rows)


def _pooled_table(result: TableVerdict) -> Table:
    columns = [
        Column(
            "metric" if len(result.metrics) > 1 else "", lambda row: row.measure.name, keys=("metric",), numeric=False
        ),
        Column("variant", lambda row: row.pooled.name, keys=("variant",), numeric=False),
        Column(
            "verdict",
            lambda row: row.pooled.verdict,
            keys=("verdict",),
            mark=lambda row: MARKS[row.pooled.verdict],
            numeric=False,
        ),
        Column(
            "groups",
            lambda row: len(row.pooled.groups),
            keys=("groups",),
            help="Groups with two pairs or more and a spread; the others are left out.",
        ),
        Column(
            "mean",
            lambda row: row.pooled.mean,
            keys=("mean",),
            show=lambda row: signed(row.pooled.mean, row.measure.digits),
            help="Random effects: DerSimonian and Laird (1986); an estimate for groups such as these.",
        ),
        Column(
            "95%",
            lambda row: row.pooled.t_interval,
            keys=("low", "high"),
            show=lambda row: interval(row.pooled.t_interval, row.measure.digits),
            help="Hartung and Knapp (2001), never narrower than chance within groups makes it.",
        ),
        Column(
            "between",
            lambda row: row.pooled.between,
            keys=("between",),
            show=lambda row: fixed(row.pooled.between, row.measure.digits),
            help="Estimated standard deviation of the groups' true gains.",
        ),
        Column("I²", lambda row: row.pooled.i2, keys=("i2",), show=lambda row: f"{100 * row.pooled.i2:.0f}%"),
        Column("p", lambda row: row.pooled.p, p_value, keys=("p",)),
        Column("p, Holm", lambda row: row.pooled.p_holm, p_value, keys=("p_holm",)),
        Column("", lambda row: row.pooled.p_equivalent, keys=("p_equivalent",)),
        Column(
            "p, equivalent, Holm",
            lambda row: row.pooled.p_equivalent_holm,
            p_value,
            keys=("p_equivalent_holm",),
            help="That the mean is worth having: two one-sided tests, corrected for the number of variants.",
        ),
    ]
    rows = [_PooledRow(one.measure, pooled) for one in result.metrics for pooled in one.pooled]
    return Table("pooled", f"Each variant against {result.baseline}, over groups.", columns, rows)


def _statistic(name: str, row: _Compared) -> Any:
    return row.comparison.value(name)


def _shown(statistic: Statistic, row: _Compared) -> str:
    """Write a number of a comparison with the decimals that its metric asks for."""
    return shown(statistic, row.comparison, row.measure.digits)


def _variant_table(result: TableVerdict) -> Table:
    def number(title: str, name: str) -> Column:
        return Column(title, lambda row: getattr(row.values, name), keys=(title,), show=partial(_value, name))

    columns = [
        *_named(result, attrgetter("group"), attrgetter("variant")),
        Column("seeds", lambda row: row.values.n, keys=("seeds",)),
        number("mean", "mean"),
        number("deviation", "sd"),
        number("lowest", "min"),
        number("highest", "max"),
    ]
    rows = [
        _Variant(one.measure, *names, values)
        for one in result.metrics
        for names, values in one.values.items()
        if values
    ]
    return Table("variants", f"Each variant over its seeds, {result.baseline} too.", columns, rows)


def _value(name: str, row: _Variant) -> str:
    value = getattr(row.values, name)
    return DASH if value is None else fixed(value, row.measure.digits)


def _run_table(result: TableVerdict) -> Table:
    columns = [
        *_named(result, attrgetter("group"), attrgetter("variant")),
        Column("seed", attrgetter("seed"), keys=("seed",)),
        Column("value", attrgetter("value"), keys=("value",), show=lambda row: fixed(row.value, row.measure.digits)),
    ]
    rows = [
        _Run(one.measure, *names, seed, value)
        for one in result.metrics
        for names, values in one.values.items()
        if values
        for seed, value in values.values.items()
    ]
    return Table("runs", f"All {len(rows)} numbers of the table.", columns, rows)
