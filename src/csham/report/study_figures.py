"""The figures of a study: learning curves, differences with their intervals, accuracy against what it costs.

Each function draws plain numbers on a figure without a legend; :func:`add_legend` adds one for those who read the
figure alone. A page has its own legend, :func:`legend_marks`, which fits any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csham.report.drawing import GOOD, INK, MUTED, PAPER, Look
from csham.study.findings import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Curve",
    "Point",
    "add_legend",
    "draw_curves",
    "draw_differences",
    "draw_points",
    "legend_marks",
    "pareto_front",
]


@dataclass(frozen=True)
class Curve:
    """One network's way through training, or the end of it.

    Attributes:
        label: The network's.
        epochs: From 1.
        mean: Over seeds, at each epoch.
        low: The smallest over seeds.
        high: The largest.
    """

    label: str
    epochs: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def after(self, epoch: int) -> Curve:
        """Return what comes after an epoch."""
        start = sum(one <= epoch for one in self.epochs)
        return Curve(self.label, self.epochs[start:], self.mean[start:], self.low[start:], self.high[start:])


@dataclass(frozen=True)
class Point:
    """One network's accuracy and one of its costs.

    Attributes:
        label: The network's.
        cost: On the horizontal axis; smaller is better.
        top1: Mean over seeds.
        low: The smallest over seeds.
        high: The largest.
    """

    label: str
    cost: float
    top1: float
    low: float
    high: float


def draw_curves(curves: Sequence[Curve], looks: Mapping[str, Look], title: str, *, logarithmic: bool = False) -> Figure:
    """Draw the mean over seeds against epochs, with a band from the smallest to the largest.

    Args:
        curves: Drawn in their order, the last on top.
        looks: Of each label.
        title: Quantity drawn, with its unit.
        logarithmic: True if the vertical axis is logarithmic.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure, axes = _figure(4.9, 3.5)
    for place, curve in enumerate(curves):
        look = looks[curve.label]
        if any(low != high for low, high in zip(curve.low, curve.high, strict=True)):
            axes.fill_between(curve.epochs, curve.low, curve.high, color=look.colour, alpha=0.13, linewidth=0, zorder=2)
        axes.plot(
            curve.epochs,
            curve.mean,
            color=look.colour,
            linestyle=look.linestyle,
            linewidth=look.width,
            markevery=_some_epochs(len(curve.epochs), place),
            zorder=3 + place / len(curves),
            **_marker(look, 5),
        )
    axes.set(title=title, xlabel="epoch")
    if logarithmic and all(value > 0 for curve in curves for value in curve.low):
        _logarithmic(axes.yaxis, "y", axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return figure


def draw_differences(
    groups: Mapping[str, Sequence[Comparison]],
    looks: Mapping[str, Look],
    worthwhile: float,
    axis: str = "test top-1 minus the plain network's, percentage points",
) -> Figure:
    """Draw a row for each network: its name, the difference of every seed, the mean, and both intervals.

    Args:
        groups: Under the label of each plain network, those compared with it; each has at least one pair.
        looks: Of each label.
        worthwhile: Differences smaller than this are not worth having; shaded.
        axis: Title of the horizontal axis.
    """
    rows = sum(map(len, groups.values()))
    figure, axes = _figure(5.0, 0.8 + 0.5 * rows + 0.3 * len(groups))
    axes.axvspan(-worthwhile, worthwhile, color=GOOD, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    height = 0.0
    for plain, differences in groups.items():
        height -= 0.55
        _name(axes, height, f"against {plain}", MUTED)
        for difference in differences:
            height -= 1
            _name(axes, height + 0.42, difference.label, INK)
            _draw_difference(axes, height, difference, looks[difference.label])
    axes.set_ylim(height - 0.45, 0.1)
    axes.set_xlim(*_symmetric_enough(groups, worthwhile))
    axes.set_yticks([])
    axes.tick_params(axis="x", top=rows > _MANY_ROWS, labeltop=rows > _MANY_ROWS)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(axis)
    return figure


def draw_points(points: Sequence[Point], looks: Mapping[str, Look], title: str, unit: str) -> Figure:
    """Draw accuracy against a cost, and join the networks that no other beats in both.

    Args:
        points: A network each.
        looks: Of each label.
        title: Name of the cost.
        unit: Of the cost.
    """
    figure, axes = _figure(4.2, 3.4)
    front = pareto_front(points)
    if len(front) > 1:
        places = sorted((point.cost, point.top1) for point in points if point.label in front)
        axes.plot(*zip(*places, strict=True), color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)
    for point in points:
        look = looks[point.label]
        axes.plot([point.cost] * 2, [point.low, point.high], color=look.colour, linewidth=1, alpha=0.55, zorder=3)
        if point.label in front:
            axes.plot(point.cost, point.top1, "o", markersize=14, color="none", markeredgecolor=MUTED, zorder=4)
        axes.plot(point.cost, point.top1, linestyle="none", color=look.colour, zorder=5, **_marker(look, 7))
    axes.margins(x=0.12, y=0.12)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) > 12 * min(costs):
        _logarithmic(axes.xaxis, "x", axes)
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.set(title=title, xlabel=unit, ylabel="test top-1, %")
    return figure


def pareto_front(points: Sequence[Point]) -> list[str]:
    """Return the labels of those networks that no other beats in one of accuracy and cost and equals in the other."""
    return [
        one.label
        for one in points
        if not any(
            other.cost <= one.cost and other.top1 >= one.top1 and (other.cost, other.top1) != (one.cost, one.top1)
            for other in points
        )
    ]


def add_legend(figure: Figure, labels: Sequence[str], looks: Mapping[str, Look], *, lines: bool) -> None:
    """Make a figure readable alone.

    Args:
        figure: Made taller by the legend's rows.
        labels: In the legend's order.
        looks: Of each label.
        lines: True if networks are lines in it rather than points.
    """
    from matplotlib.lines import Line2D  # noqa: PLC0415

    handles = []
    for label in labels:
        look = looks[label]
        handle = Line2D([], [], color=look.colour, linewidth=look.width, **_marker(look, 5 if lines else 7))
        handle.set_linestyle(look.linestyle if lines else "none")
        handles.append(handle)
    longest = max(map(len, labels))
    columns = 1 if longest > _LONG_LABEL else 2
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, 0.075 * longest + 0.7), height + 0.2 * math.ceil(len(labels) / columns) + 0.1)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2 if lines else 1.2, borderaxespad=0
    )


def legend_marks(look: Look) -> dict[str, Any]:
    """Return what a page draws for one network: its marker's outline in a box of ten units, its line, its colour."""
    from matplotlib.markers import MarkerStyle  # noqa: PLC0415

    marker = MarkerStyle(look.marker)
    polygons: Any = marker.get_path().transformed(marker.get_transform()).to_polygons()
    outline = [(float(x), float(y)) for x, y in polygons[0]]
    scale = 5 / max(abs(value) for point in outline for value in point)
    corners = " ".join(f"{5 + x * scale:.2f},{5 - y * scale:.2f}" for x, y in outline)
    return {
        "corners": corners,
        "colour": look.variable,
        "dashes": " ".join(map(str, look.dashes)),
        "filled": look.filled,
        "width": look.width,
    }


# More than these fill a screen, whose other end is far from the axis.
_MANY_ROWS = 12

# Characters; two columns of longer ones do not fit a figure.
_LONG_LABEL = 24


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes seconds

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _marker(look: Look, size: float) -> dict[str, Any]:
    return {
        "marker": look.marker,
        "markersize": size,
        "markerfacecolor": look.colour if look.filled else PAPER,
        "markeredgecolor": PAPER if look.filled else look.colour,
        "markeredgewidth": 0.6 if look.filled else 1.3,
    }


def _some_epochs(count: int, place: int) -> tuple[int, int]:
    """Choose the epochs that get a marker: some eight, at other places for other curves."""
    step = max(1, round(count / 8))
    return (place * step // 3 % step, step)


def _draw_difference(axes: Axes, height: float, difference: Comparison, look: Look) -> None:
    """Draw the t interval as a thick bar, the bootstrap interval as a bracketed line below it, single seeds as dots."""
    if difference.t_interval is not None:
        axes.plot(
            difference.t_interval, [height] * 2, color=look.colour, linewidth=5, alpha=0.35, solid_capstyle="butt"
        )
    if difference.bootstrap_interval is not None:
        axes.plot(
            difference.bootstrap_interval, [height] * 2, color=look.colour, linewidth=1.2, marker="|", markersize=8
        )
    axes.plot(
        difference.differences,
        [height - 0.22] * len(difference.differences),
        linestyle="none",
        marker="o",
        markersize=3.4,
        color=look.colour,
        alpha=0.75,
        markeredgewidth=0,
    )
    axes.plot(_mean(difference), height, linestyle="none", color=look.colour, zorder=5, **_marker(look, 8))


def _mean(one: Comparison) -> float:
    assert one.mean is not None  # it has a pair
    return one.mean


def _name(axes: Axes, height: float, text: str, colour: str) -> None:
    axes.text(
        0.004,
        height,
        text,
        transform=axes.get_yaxis_transform(),
        color=colour,
        fontsize=min(10, 560 / len(text)),  # so that a long one fits
        va="center",
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.8},
        zorder=3,
    )


def _symmetric_enough(groups: Mapping[str, Sequence[Comparison]], worthwhile: float) -> tuple[float, float]:
    """Return limits that hold every value and the margin, and no more of endless intervals than is useful."""
    values = [value for group in groups.values() for one in group for value in (_mean(one), *one.differences)]
    reach = 4 * max([worthwhile, *(abs(value) for value in values)])
    ends = [
        end
        for group in groups.values()
        for one in group
        for interval in (one.t_interval, one.bootstrap_interval)
        for end in interval or ()
    ]
    shown = [-1.3 * worthwhile, 1.3 * worthwhile, *values, *(min(max(end, -reach), reach) for end in ends)]
    margin = 0.04 * (max(shown) - min(shown))
    return min(shown) - margin, max(shown) + margin


def _logarithmic(axis: Any, which: str, axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    getattr(axes, f"set_{which}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
