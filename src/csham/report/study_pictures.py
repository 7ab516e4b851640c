"""The pictures of a study's report: each drawn for the page and for files, with its numbers in words and as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from csham.report.drawing import Look, drawing, inline_svg, looks_of, png_bytes, svg_bytes
from csham.report.study_figures import (
    Curve,
    Point,
    add_legend,
    draw_curves,
    draw_differences,
    draw_points,
    legend_marks,
    pareto_front,
)
from csham.report.study_material import Material
from csham.report.study_tables import curve
from csham.report.tables import Column, Table, fixed, interval, signed
from csham.study.comparison_statistics import STATISTICS
from csham.study.findings import Comparison, NetworkRow
from csham.study.statistics import FEW
from csham.training.metrics import METRICS
from csham.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CURVES",
    "Family",
    "Gains",
    "Picture",
    "draw_difference_picture",
    "draw_families",
    "draw_gains",
    "picture_of",
]

# Columns of metrics.csv, and what a picture of them is called.
_TOP1, _LOSS = METRICS["top1"], METRICS["loss"]
CURVES = {
    "val_top1": f"validation {_TOP1.with_unit(_TOP1.title)}",
    "train_loss": f"training {_LOSS.with_unit(_LOSS.title)}",
}

# Epochs; the end of fewer is seen well enough.
_LONG = 9

# What of costs.json stands on the horizontal axis, its title and its unit.
_COSTS = {"train_step_ms": ("training time", "ms for a step"), "latency_ms": ("latency", "ms for one image")}


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: Stem of its files and of its ids in the page.
        title: Name of the picture.
        inline: Element of the page, which has a legend of its own.
        svg: File.
        png: File.
        caption: Explanation of how to read it.
        table: Its numbers.
    """

    name: str
    title: str
    inline: str
    svg: bytes
    png: bytes
    caption: str
    table: Table


@dataclass(frozen=True)
class Family:
    """The networks of one backbone.

    Attributes:
        name: Of the backbone.
        legend: Look of each network, in the page's terms.
        curves: Over epochs.
        points: Accuracy against costs.
    """

    name: str
    legend: Sequence[Mapping[str, Any]]
    curves: Sequence[Picture]
    points: Sequence[Picture]


def draw_families(material: Material) -> list[Family]:
    """Draw learning curves and costs of each backbone that has finished runs."""
    taken: set[str] = set()
    families = []
    with drawing():
        for name, labels in material.families.items():
            stem = _stem(name, taken)
            looks = _looks(material, labels)
            legend = [{"label": label, **legend_marks(looks[label])} for label in labels]
            curves = list(_curve_pictures(material, name, stem, labels, looks))
            families.append(Family(name, legend, curves, list(_point_pictures(material, name, stem, labels, looks))))
    return families


@dataclass(frozen=True)
class Gains:
    """What differences are of, in the words of a picture.

    Attributes:
        name: Stem of the picture's files.
        title: Name of the picture.
        axis: Title of the horizontal axis.
        caption: Of the table of the numbers.
        subject: Head of the column of labels.
        unit: Word behind a number; may be empty.
        digits: Decimals.
    """

    name: str = "differences"
    title: str = "Difference of each network's test top-1 to the plain network's"
    axis: str = "test top-1 minus the plain network's, percentage points"
    caption: str = "Paired differences of test top-1, percentage points."
    subject: str = "network"
    unit: str = "points"
    digits: int = 2


def draw_difference_picture(material: Material) -> Picture | None:
    """Draw all paired differences with their intervals; None where there is no pair."""
    looks = {label: look for labels in material.families.values() for label, look in _looks(material, labels).items()}
    return draw_gains(material.results.comparisons, looks, material.results.worthwhile, Gains())


def draw_gains(
    comparisons: Iterable[Comparison],
    looks: Mapping[str, Look],
    worthwhile: float,
    words: Gains,
    pooled: Sequence[Comparison] = (),
) -> Picture | None:
    """Draw paired differences with their intervals; None where there is no pair.

    Args:
        comparisons: Those without a pair are left out.
        looks: Of each label.
        worthwhile: In the unit of the differences.
        words: What they are of.
        pooled: Drawn below the others, and not in the table: means over groups, whose "seeds" are the groups.
    """
    compared = [one for one in comparisons if one.n]
    if not compared:
        return None
    groups: dict[str, list[Comparison]] = {}
    for one in [*compared, *pooled]:
        groups.setdefault(str(one.against), []).append(one)
    margin = f"{worthwhile:g} {words.unit}".rstrip()
    with drawing():
        figure = draw_differences(groups, looks, worthwhile, words.axis)
        beyond = " Intervals that reach the edge go on beyond it." if _cut(figure, compared) else ""
        over_groups = "; over groups, single groups" if pooled else ""
        return picture_of(
            figure,
            words.name,
            words.title,
            "; ".join(_difference_words(one, words) for one in compared) + ".",
            "Marker: mean over seeds. Thick bar: 95% Student-t interval. Thin line with ends: 95% BCa bootstrap "
            f"interval, from {FEW} seeds on. Dots: single seeds{over_groups}. Shaded: less than the {margin} worth "
            f"having.{beyond}",
            _difference_table(compared, words),
        )


def _cut(figure: Figure, compared: Sequence[Comparison]) -> bool:
    low, high = figure.axes[0].get_xlim()
    ends = [end for one in compared for ends in (one.t_interval, one.bootstrap_interval) for end in ends or ()]
    return any(not low <= end <= high for end in ends)


def _looks(material: Material, labels: Sequence[str]) -> dict[str, Look]:
    rows = {row.label: row for row in material.results.networks}
    plain = [label for label in labels if rows[label].plain]
    controls = [label for label in labels if rows[label].instead_of is not None]
    return looks_of(labels, plain, controls)


def _curve_pictures(
    material: Material, family: str, stem: str, labels: Sequence[str], looks: Mapping[str, Look]
) -> Iterator[Picture]:
    for measure, title in CURVES.items():
        curves = [one for label in labels if (one := curve(material, label, measure)) is not None]
        if not curves:
            continue
        name = measure.replace("_", "-")
        yield _curve_picture(f"{name}-{stem}", family, title, curves, looks, logarithmic=measure == "train_loss")
        last = max(epoch for one in curves for epoch in one.epochs)
        if measure == "val_top1" and last >= _LONG:
            ends = [end for one in curves if (end := one.after(last * 2 // 3)).epochs]
            yield _curve_picture(f"{name}-end-{stem}", family, f"{title}, the last third", ends, looks)


def _curve_picture(
    name: str, family: str, title: str, curves: Sequence[Curve], looks: Mapping[str, Look], *, logarithmic: bool = False
) -> Picture:
    words = [f"{one.label} {_range(one.mean[-1], one.low[-1], one.high[-1])}" for one in curves]
    return picture_of(
        draw_curves(curves, looks, title, logarithmic=logarithmic),
        name,
        f"{title} of {family} over epochs",
        f"After the last epoch, mean (lowest to highest seed): {'; '.join(words)}.",
        "",
        _curve_table(title, curves),
        partial(add_legend, labels=[one.label for one in curves], looks=looks, lines=True),
    )


def _point_pictures(
    material: Material, family: str, stem: str, labels: Sequence[str], looks: Mapping[str, Look]
) -> Iterator[Picture]:
    rows = [row for row in material.results.networks if row.label in labels]
    for name, (title, unit, costs) in _costs(material, rows).items():
        points = [
            Point(row.label, costs[row.label], row.top1.mean, row.top1.min, row.top1.max)
            for row in rows
            if row.label in costs and row.top1 is not None
        ]
        if not points:
            continue
        front = pareto_front(points)
        words = [f"{point.label} {_number(point.cost)} {unit}, {fixed(point.top1)}%" for point in points]
        shown = [point.label for point in points]
        yield picture_of(
            draw_points(points, looks, title, unit),
            f"top1-{name}-{stem}",
            f"Test top-1 of {family} against {title}",
            f"{'; '.join(words)}. Pareto front: {', '.join(front)}.",
            "",
            _point_table(title, unit, points, front),
            partial(add_legend, labels=shown, looks=looks, lines=False),
        )


def _costs(material: Material, rows: Sequence[NetworkRow]) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Return title, unit and numbers of each cost; a run's own time where steps were not timed side by side."""
    costs = {}
    for name, (title, unit) in _COSTS.items():
        measured = material.costs.rows
        known = {row.label: measured[row.label].get(name) for row in rows if row.label in measured}
        costs[name.removesuffix("_ms").replace("_", "-")] = (title, unit, {k: v for k, v in known.items() if v})
    if not costs["train-step"][2]:
        seconds = {row.label: row.seconds / 60 for row in rows if row.seconds}
        costs["train-step"] = ("training time", "minutes for a run, as it was", seconds)
    params = {row.label: row.params for row in rows if row.params}
    scale, unit = (1e6, "millions") if max(params.values(), default=0) >= 1e6 else (1e3, "thousands")
    costs["params"] = ("parameters", unit, {label: count / scale for label, count in params.items()})
    return costs


def picture_of(
    figure: Figure,
    name: str,
    title: str,
    description: str,
    caption: str,
    table: Table,
    finish: Callable[[Figure], None] | None = None,
) -> Picture:
    """Make what a page and files need of a figure.

    Args:
        figure: Drawn within :func:`csham.report.drawing.drawing`.
        name: Stem of its files and of its ids in the page.
        title: Name of the picture.
        description: Text on what it shows, with the numbers.
        caption: Explanation of how to read it.
        table: Its numbers.
        finish: Adds to the files what the page says beside.
    """
    inline = inline_svg(figure, name, title, description)
    if finish is not None:
        finish(figure)
    return Picture(name, title, inline, svg_bytes(figure), png_bytes(figure), caption, table)


def _difference_words(one: Comparison, words: Gains) -> str:
    statistic = STATISTICS["bootstrap_interval"]
    bootstrap = statistic.instead(one) or interval(one.bootstrap_interval, words.digits)
    gain = f"{signed(one.mean, words.digits)} {words.unit}".rstrip()
    return (
        f"{one.label} {gain} against {one.against}, t interval {interval(one.t_interval, words.digits)}, BCa "
        f"interval {bootstrap}, {counted(one.n, 'seed')}: {one.verdict}"
    )


def _difference_table(compared: Sequence[Comparison], words: Gains) -> Table:
    def of_seed(seed: Any) -> Callable[[Comparison], float | None]:
        return lambda one: dict(zip(one.seeds, one.differences, strict=True)).get(seed)

    form = partial(signed, digits=words.digits)
    seeds = {seed: None for one in compared for seed in one.seeds}
    columns = [
        Column(words.subject, attrgetter("label"), numeric=False),
        *(Column(f"seed {seed}", of_seed(seed), form) for seed in sorted(seeds, key=_by_number)),
        Column("mean", attrgetter("mean"), form),
    ]
    return Table(words.name, words.caption, columns, compared)


def _by_number(seed: Any) -> tuple[int, str]:
    return (int(seed), "") if str(seed).isdecimal() else (2**63, str(seed))


def _curve_table(title: str, curves: Sequence[Curve]) -> Table:
    def at(epoch: int) -> Callable[[Curve], list[float] | None]:
        return lambda one: next(
            (ends for e, *ends in zip(one.epochs, one.mean, one.low, one.high, strict=True) if e == epoch), None
        )

    epochs = sorted({epoch for one in curves for epoch in one.epochs})
    shown = sorted({epochs[(len(epochs) - 1) * part // 4] for part in range(5)})
    ends = ("mean", "lowest", "highest")
    columns = [
        Column("network", attrgetter("label"), numeric=False),
        *(Column(f"epoch {epoch}", at(epoch), lambda values: _range(*values), ends) for epoch in shown),
    ]
    return Table("curve", f"{title}: mean (lowest to highest seed).", columns, curves)


def _point_table(title: str, unit: str, points: Sequence[Point], front: Sequence[str]) -> Table:
    columns = [
        Column("network", attrgetter("label"), numeric=False),
        Column(f"{title}, {unit}", attrgetter("cost"), _number),
        Column("top-1, %", attrgetter("top1"), show=lambda point: _range(point.top1, point.low, point.high)),
        Column(
            "on the front",
            lambda point: None,
            show=lambda point: "yes" if point.label in front else "no",
            numeric=False,
        ),
    ]
    return Table("points", f"Test top-1, mean (lowest to highest seed), and {title}.", columns, points)


def _range(mean: float, low: float, high: float) -> str:
    return fixed(mean) if low == high else f"{fixed(mean)} ({fixed(low)} to {fixed(high)})"


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _stem(name: str, taken: set[str]) -> str:
    """Return a part of a file's name for a backbone's, unlike those taken."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "network"
    number = 1
    unlike = stem
    while unlike in taken:
        number += 1
        unlike = f"{stem}-{number}"
    taken.add(unlike)
    return unlike
