"""The tables of a study: verdicts, networks with their costs, runs, curves, and every class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from csham.report.numbers import DASH, fixed, interval, p_value, plus_minus, signed, thousands
from csham.report.study_figures import Curve
from csham.report.study_material import Material
from csham.report.tables import Cell, Column, Table
from csham.study.comparison_statistics import STATISTICS, Statistic
from csham.study.findings import ClassDifference, Comparison, NetworkRow, Spread
from csham.training.metrics import METRICS, Metric, of_study

__all__ = [
    "budget_table",
    "class_table",
    "curve",
    "curve_table",
    "network_table",
    "run_table",
    "shown",
    "verdict_table",
]

_TOP1 = METRICS["top1"]
MARKS = {"helps": "helps", "hurts": "hurts", "no difference worth having": "same", "cannot tell yet": "open"}


def verdict_table(material: Material) -> Table:
    """Make a row for each network that is compared with a plain one."""
    results = material.results
    columns = [
        Column("network", numeric=False),
        Column(
            "verdict", numeric=False, help=f"With differences below {results.worthwhile:g} points not worth having."
        ),
        *(Column(statistic.title, help=statistic.help) for statistic in STATISTICS.values() if statistic.title),
    ]
    return Table(
        "verdicts",
        "Each network against the plain one of its backbone, test top-1 in percentage points.",
        columns,
        [_verdict_cells(one) for one in results.comparisons],
        [_verdict_row(one) for one in results.comparisons],
    )


def budget_table(material: Material) -> Table:
    """Make a row for each network and each plain network that was made to train in the same time."""
    pairs = [(one, control) for one in material.results.comparisons for control in one.controls]
    columns = [
        Column("network", numeric=False),
        Column("instead", numeric=False, help="A larger plain network that trains in the same time."),
        Column("network's gain", help="Over the plain network, percentage points."),
        Column("gain instead", help="That of the larger plain network."),
        Column("difference", help="Network minus larger plain network, mean over the seeds that both have."),
        Column("95%, t", help="Student's t interval of it, not corrected for being one of many."),
        Column("seeds"),
    ]
    rows = [
        [
            _text(one.label),
            _text(control.label.partition(" (")[0]),
            Cell(signed(one.mean), one.mean),
            Cell(signed(control.control_mean), control.control_mean),
            Cell(signed(control.mean), control.mean),
            Cell(interval(control.t_interval), control.t_interval and control.t_interval[0]),
            Cell(str(control.n), control.n),
        ]
        for one, control in pairs
    ]
    raw = [
        {
            "network": one.label,
            "instead": control.label,
            "gain": one.mean,
            "gain_instead": control.control_mean,
            "difference": control.mean,
            "t_low": control.t_interval and control.t_interval[0],
            "t_high": control.t_interval and control.t_interval[1],
            "seeds": control.n,
        }
        for one, control in pairs
    ]
    caption = "Each network against a larger plain one of the same training time, test top-1 in percentage points."
    return Table("budget", caption, columns, rows, raw)


def network_table(material: Material) -> Table:
    """Make a row for each network: accuracies over seeds, sizes and times."""
    metrics = _metrics(material)
    columns = [
        Column("network", numeric=False),
        Column("seeds", help="Finished runs."),
        _column(_TOP1),
        Column(_TOP1.with_unit("chosen"), help="Of the epoch that the validation part chose, likewise."),
        *map(_column, metrics.values()),
        Column("parameters"),
        Column("MFLOPs", help="Millions of floating-point operations for one image, two to a multiply-add."),
        Column("run, min", help="Training time of a run as it was, mean over seeds, on whatever else the machine did."),
        Column("train step, ms", help="Forward, loss, backward and SGD over a batch, measured side by side."),
        Column("images/s", help="Forward passes over batches, measured side by side."),
        Column("latency, ms", help="One forward pass over one image, measured side by side."),
        Column("train memory, MiB", help="Most memory of a training step, measured side by side."),
    ]
    rows = [(row, material.costs.rows.get(row.label, {})) for row in material.results.networks]
    return Table(
        "networks",
        "What each network reached on the test part, mean over seeds ± standard deviation, and what it costs.",
        columns,
        [_network_cells(row, cost, metrics) for row, cost in rows],
        [_network_row(row, cost, metrics) for row, cost in rows],
    )


def run_table(material: Material) -> Table:
    """Make a row for each run of the study, finished or not."""
    by_key = {record["key"]: record for record in material.records}
    cells = [(cell, by_key.get(cell.key, {})) for cell in material.study.cells()]
    metrics = {name: metric for name, metric in _metrics(material).items() if metric.study.every_run}
    rows = [_run_row(cell.network.label, cell.seed, record, metrics) for cell, record in cells]
    columns = [
        Column("network", numeric=False),
        Column("seed"),
        Column("state", numeric=False),
        Column(_column(_TOP1).title),
        Column(_TOP1.with_unit("chosen")),
        Column("chosen epoch"),
        *(Column(_column(metric).title) for metric in metrics.values()),
        Column("minutes"),
        Column("run folder or error", numeric=False),
    ]
    caption = f"All {len(rows)} runs of the study." if len(rows) != 1 else "The one run of the study."
    return Table("runs", caption, columns, [_run_cells(row, metrics) for row in rows], rows)


def curve(material: Material, label: str, measure: str) -> Curve | None:
    """Put the histories of a network's runs together.

    Args:
        material: The study.
        label: The network's.
        measure: A column of metrics.csv.

    Returns:
        None where no run has the measure. Epochs that not all runs have are over those that do.
    """
    by_epoch: dict[int, list[float]] = {}
    for history in material.histories(label):
        for row in history:
            value = row.get(measure)
            if isinstance(value, int | float) and math.isfinite(value) and isinstance(row.get("epoch"), int):
                by_epoch.setdefault(row["epoch"], []).append(float(value))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Curve(label, epochs, [math.fsum(v) / len(v) for v in values], [*map(min, values)], [*map(max, values)])


def curve_table(curves: Mapping[str, Sequence[Curve]]) -> Table:
    """Make a row for each network, measure and epoch; for programs.

    Args:
        curves: Under the name of what they measure.
    """
    raw: list[dict[str, Any]] = [
        {"network": one.label, "measure": measure, "epoch": epoch, "mean": mean, "lowest": low, "highest": high}
        for measure, found in curves.items()
        for one in found
        for epoch, mean, low, high in zip(one.epochs, one.mean, one.low, one.high, strict=True)
    ]
    return Table("curves", "Learning curves: mean, lowest and highest over seeds.", [], [], raw)


def class_table(classes: Mapping[str, Sequence[ClassDifference]]) -> Table:
    """Make a row for each network and class; for programs.

    Args:
        classes: Under the label of each network.
    """
    raw = [
        {
            "network": label,
            "class": one.name,
            "plain_recall": one.plain_recall,
            "recall": one.recall,
            "difference": one.mean,
            "sd": one.sd,
            "seeds": one.n,
            "images": one.images,
        }
        for label, found in classes.items()
        for one in found
    ]
    return Table("per_class", "Share of each class named right, in percent, against the plain network.", [], [], raw)


def shown(statistic: Statistic, one: Comparison) -> str:
    """Write a number of a comparison as it is read."""
    return statistic.instead(one) or _SHOWN[statistic.shown](one.value(statistic.name))


_SHOWN: dict[str, Callable[[Any], str]] = {
    "difference": signed,
    "number": fixed,
    "interval": interval,
    "p": p_value,
    "count": partial(fixed, digits=0),
}


def _verdict_cells(one: Comparison) -> list[Cell]:
    return [
        _text(one.label),
        Cell(one.verdict, one.verdict, MARKS[one.verdict]),
        *(
            Cell(shown(statistic, one), _ends(statistic, one)[0])
            for statistic in STATISTICS.values()
            if statistic.title
        ),
    ]


def _verdict_row(one: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {
        "network": one.label,
        "backbone": one.backbone,
        "against": one.against,
        "instead_of": one.instead_of,
        "verdict": one.verdict,
        "seeds": one.n,  # before the statistics for programs, among them for readers
    }
    for statistic in STATISTICS.values():
        row |= zip(statistic.keys, _ends(statistic, one), strict=True)
    return row | {"sentence": one.sentence}


def _ends(statistic: Statistic, one: Comparison) -> Sequence[Any]:
    """Return a number as one, an interval as two."""
    value = one.value(statistic.name)
    if statistic.shown == "interval":
        return (None, None) if value is None else value
    return (value,)


def _metrics(material: Material) -> dict[str, Metric]:
    """Return the metrics to show beside top-1: without those that no run has, as of few classes or of older runs."""
    rows = material.results.networks
    trained = any(row.n for row in rows)
    return {
        name: metric
        for name, metric in of_study().items()
        if any(row.metrics[name] for row in rows) or not (trained or metric.above)
    }


def _column(metric: Metric) -> Column:
    return Column(metric.with_unit(metric.study.title), help=metric.study.help)


def _network_cells(row: NetworkRow, cost: Mapping[str, Any], metrics: Mapping[str, Metric]) -> list[Cell]:
    def spread(one: Spread | None, digits: int, *, sd: bool = False) -> Cell:
        return Cell(DASH) if one is None else Cell(plus_minus(one.mean, one.sd if sd else None, digits), one.mean)

    flops = row.flops or cost.get("flops")
    params = row.params or cost.get("params")
    return [
        _text(row.label),
        Cell(str(row.n), row.n),
        spread(row.top1, _TOP1.study.digits, sd=True),
        spread(row.chosen_top1, _TOP1.study.digits, sd=True),
        *(spread(row.metrics[name], metric.study.digits) for name, metric in metrics.items()),
        Cell(thousands(params), params),
        Cell(DASH if flops is None else fixed(flops / 1e6, 1), flops),
        Cell(DASH if row.seconds is None else fixed(row.seconds / 60, 1), row.seconds),
        *_numbers(cost, {"train_step_ms": 1, "images_per_s": 0, "latency_ms": 2, "train_peak_mib": 0}),
    ]


def _numbers(cost: Mapping[str, Any], digits: Mapping[str, int]) -> Iterable[Cell]:
    for name, decimals in digits.items():
        value = cost.get(name)
        yield Cell(DASH) if value is None else Cell(f"{value:,.{decimals}f}", value)


def _network_row(row: NetworkRow, cost: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "network": row.label,
        "backbone": row.backbone,
        "attention": row.attention,
        "instead_of": row.instead_of,
        "seeds": row.n,
    }
    spreads = {"top1": row.top1, "chosen_top1": row.chosen_top1} | {name: row.metrics[name] for name in metrics}
    for name, spread in spreads.items():
        found |= {f"{name}_{key}": spread and getattr(spread, key) for key in ("mean", "sd", "min", "max")}
    names = ("test_images", "test_se", "params", "flops", "seconds")
    found |= {name: getattr(row, name) for name in names}
    costs = ("batch_size", "precision", "device", "train_step_ms", "images_per_s", "latency_ms")
    return found | {f"cost_{name}": cost.get(name) for name in (*costs, "peak_mib", "train_peak_mib")}


def _run_row(label: str, seed: int, record: Mapping[str, Any], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    result, error = record.get("result") or {}, record.get("error") or {}
    chosen = result.get("validation_chosen") or {}
    state = {"done": "finished", "failed": "failed"}.get(str(record.get("status")), "to come")
    return {
        "network": label,
        "seed": seed,
        "state": state,
        "top1": result.get("top1"),
        "chosen_top1": chosen.get("top1"),
        "chosen_epoch": chosen.get("epoch"),
        **{name: result.get(metric.name) for name, metric in metrics.items()},
        "seconds": result.get("seconds"),
        "run": record.get("run"),
        "error": f"{error.get('type', '')}: {error.get('message', '')}" if state == "failed" else None,
    }


def _run_cells(row: Mapping[str, Any], metrics: Mapping[str, Metric]) -> list[Cell]:
    minutes = None if row["seconds"] is None else row["seconds"] / 60
    where = row["error"] or row["run"] or ""
    return [
        _text(row["network"]),
        Cell(str(row["seed"]), row["seed"]),
        Cell(row["state"], row["state"], {"failed": "hurts", "to come": "open"}.get(row["state"], "")),
        *(Cell(fixed(row[name], _TOP1.study.digits), row[name]) for name in ("top1", "chosen_top1")),
        Cell(thousands(row["chosen_epoch"]), row["chosen_epoch"]),
        *(Cell(fixed(row[name], metric.study.digits), row[name]) for name, metric in metrics.items()),
        Cell(fixed(minutes, 1), minutes),
        _text(where if len(where) <= _LONGEST else f"{where[:_LONGEST]}…"),
    ]


_LONGEST = 160  # characters of an error's message in a table


def _text(text: str) -> Cell:
    return Cell(text, text)
