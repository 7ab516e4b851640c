"""Costs of networks, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from csham.cli.common import print_table
from csham.words import say

if TYPE_CHECKING:
    from csham.cost import Cost, Spread

__all__ = ["print_costs"]

_LEGEND = (
    "+%: more than the first row; x: times the first row's time, the median over rounds; ±: half the distance between "
    "the quartiles. FLOPs: all operations for one image; those of convolutions and products alone are in --csv and "
    "--json. Latency: one image. Peak: with parameters and batch; of training, with gradients and momentum too."
)


def print_costs(title: str, costs: Sequence[Cost]) -> None:
    """Print a row for each network at each way of running it, and below what could not be measured."""
    ways = {
        "precision": [cost.precision for cost in costs],
        "mode": ["compiled" if cost.compiled else "eager" for cost in costs],
        "batch": [f"batch {cost.batch_size}" for cost in costs],
    }
    shown = {name: values for name, values in ways.items() if len(set(values)) > 1}
    title = ", ".join([title, *(values[0] for name, values in ways.items() if name not in shown)])
    giga = max(cost.flops or 0 for cost in costs) >= 1e9
    rows = [
        [cost.name, *(values[number] for values in shown.values()), *_numbers(cost, 1e9 if giga else 1e6)]
        for number, cost in enumerate(costs)
    ]
    print_table(title, ["", *shown, *_header("GFLOPs" if giga else "MFLOPs")], rows)
    say(_LEGEND)
    for reason in dict.fromkeys(f"{cost.name}: {cost.failed}" for cost in costs if cost.failed):
        say(reason)
    for operators in dict.fromkeys(" ".join(cost.flops_uncounted) for cost in costs if cost.flops_uncounted):
        say(f"FLOPs leave out operators without a formula: {operators}")


def _header(flops: str) -> list[str]:
    times = ("latency ms", "images/s", "train step ms")
    return [
        "params M",
        "+%",
        flops,
        "+%",
        *(word for name in times for word in (name, "±", "x")),
        "peak MiB",
        "train MiB",
    ]


def _numbers(cost: Cost, flops_unit: float) -> list[Any]:
    return [
        None if cost.params is None else cost.params / 1e6,
        _extra(cost, "params"),
        None if cost.flops is None else cost.flops / flops_unit,
        _extra(cost, "flops"),
        *_timing(cost.latency_ms, cost, "latency"),
        *_timing(cost.images_per_s, cost, "inference"),
        *_timing(cost.train_step_ms, cost, "train_step"),
        cost.peak_mib,
        cost.train_peak_mib,
    ]


def _extra(cost: Cost, ratio: str) -> float | None:
    return 100 * (cost.ratios[ratio] - 1) if ratio in cost.ratios else None


def _timing(spread: Spread | None, cost: Cost, ratio: str) -> list[float | None]:
    if spread is None:
        return [None, None, None]
    return [spread.median, (spread.upper - spread.lower) / 2, cost.ratios.get(ratio)]
