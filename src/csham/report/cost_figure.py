"""Picture of what attentions add to a backbone: parameters, FLOPs, time and memory, a line for each attention."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csham.cost.result import Cost
from csham.files import write_atomically
from csham.fonts import legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURE_FORMATS", "write_cost_figure"]

FIGURE_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class _Series:
    """One ratio of :class:`Cost`, and how its points look; colours of Okabe and Ito, told apart by shape too."""

    ratio: str
    label: str
    colour: str
    marker: str


_PANELS: tuple[tuple[str, tuple[_Series, ...]], ...] = (
    ("parameters", (_Series("params", "parameters", "#000000", "o"),)),
    (
        "FLOPs",
        (
            _Series("flops_matmul", "convolutions and products", "#E69F00", "D"),
            _Series("flops", "all", "#000000", "o"),
        ),
    ),
    (
        "time",
        (
            _Series("latency", "latency, one image", "#0072B2", "s"),
            _Series("inference", "inference, a batch", "#56B4E9", "^"),
            _Series("train_step", "training step", "#D55E00", "o"),
        ),
    ),
    (
        "memory",
        (
            _Series("peak", "inference", "#56B4E9", "^"),
            _Series("train_peak", "training", "#D55E00", "o"),
        ),
    ),
)

# One attention adds 0.01%, another 100%: logarithmic above 0.1%.
_MANY_SIZES = ("parameters", "FLOPs")


def write_cost_figure(path: Path, costs: Sequence[Cost], title: str) -> None:
    """Draw each network's extra cost over the first's, in percent, sorted by the training step's.

    Args:
        path: A file whose suffix is one of :data:`FIGURE_FORMATS`.
        costs: Of one comparison, the plain network first. Several batch sizes, precisions or ways of running it make
            rows of panels. Networks without any ratio are left out.
        title: Text above the panels: what was measured, on what.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  takes seconds

    first = costs[0].name
    names = {cost.name for cost in costs if cost.name != first and cost.ratios.get("flops")}
    rows = _by_way([cost for cost in costs if cost.name in names]) or {"nothing to compare": []}
    height = 0.9 + len(rows) * (1.3 + 0.21 * max(len(names), 4))
    figure = Figure(figsize=(13, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), len(_PANELS), squeeze=False, sharey="row", width_ratios=(1, 1.2, 2, 1.4))
    for axes_row, (way, row) in zip(grid, rows.items(), strict=True):
        row.sort(key=_slowness)
        for axes, (name, series) in zip(axes_row, _PANELS, strict=True):
            _draw_panel(axes, row, name, series)
        axes_row[0].set_yticks(range(len(row)), [cost.name for cost in row], fontsize=9)
        axes_row[0].set_ylim(-0.7, len(row) - 0.3)
        axes_row[0].set_ylabel(way, fontsize=9)
    content = io.BytesIO()
    with legible(figure):
        figure.savefig(content, format=path.suffix[1:].lower(), dpi=130)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def _by_way(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    by_way: dict[str, list[Cost]] = {}
    for cost in costs:
        way = f"{cost.precision}, {'compiled' if cost.compiled else 'eager'}, batch {cost.batch_size}"
        by_way.setdefault(way, []).append(cost)
    return by_way


def _slowness(cost: Cost) -> float:
    return cost.ratios.get("train_step") or cost.ratios.get("inference") or 0.0


def _draw_panel(axes: Axes, costs: Sequence[Cost], name: str, series: Sequence[_Series]) -> None:
    """Draw one kind of cost: a line for each network, a marker for each measure."""
    for one in series:
        points = [(100 * (cost.ratios[one.ratio] - 1), y) for y, cost in enumerate(costs) if one.ratio in cost.ratios]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            one.marker,
            color=one.colour,
            label=one.label,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linestyle="none",
        )
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_xlabel(f"extra {name}, %" + ("\nlogarithmic above 0.1" if name in _MANY_SIZES else ""), fontsize=9)
    if name in _MANY_SIZES:
        extras = [0, *(100 * (cost.ratios.get(one.ratio, 1) - 1) for cost in costs for one in series)]
        axes.set_xscale("symlog", linthresh=0.1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(min(-0.02, 1.5 * min(extras)), max(0.2, 1.5 * max(extras)))
    axes.grid(axis="y", color="0.93")
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    if len(series) > 1:
        axes.legend(
            fontsize=8,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=len(series),
            frameon=False,
            handletextpad=0.1,
            columnspacing=0.8,
        )
