"""The tables of a study: verdicts, networks with their costs, runs, curves, and every class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from typing import Any

from csham.report.study_figures import Curve
from csham.report.study_material import Material
from csham.report.tables import Column, Table, fixed, interval, p_value, plus_minus, signed, thousands
from csham.study.comparison_statistics import STATISTICS, Statistic
from csham.study.findings import AgainstControl, ClassDifference, Comparison, NetworkRow, Spread
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
        _text("network", "network", attrgetter("label")),
        *(_text("", name, attrgetter(name)) for name in ("backbone", "against", "instead_of")),
        Column(
            "verdict",
            attrgetter("verdict"),
            keys=("verdict",),
            mark=lambda one: MARKS[one.verdict],
            numeric=False,
            help=f"With differences below {results.worthwhile:g} points not worth having.",
        ),
        Column("", attrgetter("n"), keys=("seeds",)),  # before the statistics for programs, among them for readers
        *(
            Column(
                statistic.title,
                methodcaller("value", statistic.name),
                keys=statistic.keys,
                show=partial(shown, statistic),
                help=statistic.help,
            )
            for statistic in STATISTICS.values()
        ),
        _text("", "sentence", attrgetter("sentence")),
    ]
    caption = "Each network against the plain one of its backbone, test top-1 in percentage points."
    return Table("verdicts", caption, columns, results.comparisons)


def budget_table(material: Material) -> Table:
    """Make a row for each network and each plain network that was made to train in the same time."""

    def control(name: str) -> Callable[[tuple[Comparison, AgainstControl]], Any]:
        return lambda pair: getattr(pair[1], name)

    columns = [
        _text("network", "network", lambda pair: pair[0].label),
        _text("", "instead", control("label")),
        Column(
            "instead",
            lambda pair: pair[1].label.partition(" (")[0],
            numeric=False,
            help="A larger plain network that trains in the same time.",
        ),
        Column(
            "network's gain",
            lambda pair: pair[0].mean,
            signed,
            ("gain",),
            help="Over the plain network, percentage points.",
        ),
        Column(
            "gain instead",
            control("control_mean"),
            signed,
            ("gain_instead",),
            help="That of the larger plain network.",
        ),
        Column(
            "difference",
            control("mean"),
            signed,
            ("difference",),
            help="Network minus larger plain network, mean over the seeds that both have.",
        ),
        Column(
            "95%, t",
            control("t_interval"),
            interval,
            ("t_low", "t_high"),
            help="Student's t interval of it, not corrected for being one of many.",
        ),
        Column("seeds", control("n"), keys=("seeds",)),
    ]
    caption = "Each network against a larger plain one of the same training time, test top-1 in percentage points."
    pairs = [(one, control) for one in material.results.comparisons for control in one.controls]
    return Table("budget", caption, columns, pairs)


def network_table(material: Material) -> Table:
    """Make a row for each network: accuracies over seeds, sizes and times."""
    costs = material.costs.rows

    def cost(title: str, name: str, digits: int = 0, help: str = "") -> Column:
        """Make a column of what was measured side by side."""
        return Column(
            title,
            lambda row: costs.get(row.label, {}).get(name),
            lambda value: f"{value:,.{digits}f}",
            (f"cost_{name}",),
            help=help and f"{help}, measured side by side.",
        )

    def size(name: str) -> Callable[[NetworkRow], Any]:
        """Find a size of a network, in the costs where no run says."""
        return lambda row: getattr(row, name) or costs.get(row.label, {}).get(name)

    columns = [
        _text("network", "network", attrgetter("label")),
        *(_text("", name, attrgetter(name)) for name in ("backbone", "attention", "instead_of")),
        Column("seeds", attrgetter("n"), keys=("seeds",), help="Finished runs."),
        _spread_column(_TOP1, "top1", attrgetter("top1"), sd=True),
        replace(
            _spread_column(_TOP1, "chosen_top1", attrgetter("chosen_top1"), sd=True),
            title=_TOP1.with_unit("chosen"),
            help="Of the epoch that the validation part chose, likewise.",
        ),
        *(_spread_column(one, name, _metric_of(name)) for name, one in _metrics(material).items()),
        *(Column("", attrgetter(name), keys=(name,)) for name in ("test_images", "test_se", "params", "flops")),
        Column("parameters", size("params"), thousands),
        Column(
            "MFLOPs",
            size("flops"),
            lambda flops: fixed(flops / 1e6, 1),
            help="Millions of floating-point operations for one image, two to a multiply-add.",
        ),
        Column(
            "run, min",
            attrgetter("seconds"),
            lambda seconds: fixed(seconds / 60, 1),
            ("seconds",),
            help="Training time of a run as it was, mean over seeds, on whatever else the machine did.",
        ),
        *(cost("", name) for name in ("batch_size", "precision", "device")),
        cost("train step, ms", "train_step_ms", 1, "Forward, loss, backward and SGD over a batch"),
        cost("images/s", "images_per_s", 0, "Forward passes over batches"),
        cost("latency, ms", "latency_ms", 2, "One forward pass over one image"),
        cost("", "peak_mib"),
        cost("train memory, MiB", "train_peak_mib", 0, "Most memory of a training step"),
    ]
    caption = "What each network reached on the test part, mean over seeds ± standard deviation, and what it costs."
    return Table("networks", caption, columns, material.results.networks)


def run_table(material: Material) -> Table:
    """Make a row for each run of the study, finished or not."""
    by_key = {record["key"]: record for record in material.records}
    metrics = {name: metric for name, metric in _metrics(material).items() if metric.study.every_run}
    rows = [
        _run_row(cell.network.label, cell.seed, by_key.get(cell.key, {}), metrics) for cell in material.study.cells()
    ]

    def number(title: str, name: str, form: Callable[[Any], str] = str) -> Column:
        return Column(title, itemgetter(name), form, (name,))

    top1 = partial(fixed, digits=_TOP1.study.digits)
    columns = [
        _text("network", "network", itemgetter("network")),
        number("seed", "seed"),
        replace(
            _text("state", "state", itemgetter("state")),
            mark=lambda row: {"failed": "hurts", "to come": "open"}.get(row["state"], ""),
        ),
        number(_title(_TOP1), "top1", top1),
        number(_TOP1.with_unit("chosen"), "chosen_top1", top1),
        number("chosen epoch", "chosen_epoch", thousands),
        *([number("epochs", "epochs", thousands)] if material.study.settings.get("patience") is not None else []),
        *(number(_title(one), name, partial(fixed, digits=one.study.digits)) for name, one in metrics.items()),
        Column("", itemgetter("seconds"), keys=("seconds",)),
        Column(
            "minutes", lambda row: None if row["seconds"] is None else row["seconds"] / 60, partial(fixed, digits=1)
        ),
        *(_text("", name, itemgetter(name)) for name in ("run", "error")),
        Column("run folder or error", lambda row: _shortened(row["error"] or row["run"] or ""), numeric=False),
    ]
    caption = f"All {len(rows)} runs of the study." if len(rows) != 1 else "The one run of the study."
    return Table("runs", caption, columns, rows)


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
    keys = ("network", "measure", "epoch", "mean", "lowest", "highest")
    rows = [
        (one.label, measure, *numbers)
        for measure, ones in curves.items()
        for one in ones
        for numbers in zip(one.epochs, one.mean, one.low, one.high, strict=True)
    ]
    return Table(
        "curves", "Learning curves: mean, lowest and highest over seeds.", [Column("", tuple, keys=keys)], rows
    )


def class_table(classes: Mapping[str, Sequence[ClassDifference]]) -> Table:
    """Make a row for each network and class; for programs.

    Args:
        classes: Under the label of each network.
    """
    keys = ("network", "class", "plain_recall", "recall", "difference", "sd", "seeds", "images")
    rows = [
        (label, one.name, one.plain_recall, one.recall, one.mean, one.sd, one.n, one.images)
        for label, ones in classes.items()
        for one in ones
    ]
    caption = "Share of each class named right, in percent, against the plain network."
    return Table("per_class", caption, [Column("", tuple, keys=keys)], rows)


def shown(statistic: Statistic, one: Comparison, digits: int = 2) -> str:
    """Write a number of a comparison as it is read; a gain with so many decimals."""
    forms: dict[str, Callable[[Any], str]] = {
        "difference": partial(signed, digits=digits),
        "number": partial(fixed, digits=digits),
        "interval": partial(interval, digits=digits),
        "p": p_value,
        "count": partial(fixed, digits=0),
    }
    return statistic.instead(one) or forms[statistic.shown](one.value(statistic.name))


def _text(title: str, key: str, value: Callable[[Any], Any]) -> Column:
    return Column(title, value, keys=(key,), numeric=False)


def _metrics(material: Material) -> dict[str, Metric]:
    """Return the metrics to show beside top-1: without those that no run has, as of few classes or of older runs."""
    rows = material.results.networks
    trained = any(row.n for row in rows)
    return {
        name: metric
        for name, metric in of_study().items()
        if any(row.metrics[name] for row in rows) or not (trained or metric.above)
    }


def _title(metric: Metric) -> str:
    return metric.with_unit(metric.study.title)


def _metric_of(name: str) -> Callable[[NetworkRow], Spread | None]:
    return lambda row: row.metrics[name]


def _spread_column(
    metric: Metric, name: str, spread: Callable[[NetworkRow], Spread | None], *, sd: bool = False
) -> Column:
    """Make a column of a number of all seeds: its mean for readers, with its deviation or without."""

    def value(row: NetworkRow) -> tuple[float | None, ...] | None:
        one = spread(row)
        return None if one is None else (one.mean, one.sd, one.min, one.max)

    return Column(
        _title(metric),
        value,
        lambda one: plus_minus(one[0], one[1] if sd else None, metric.study.digits),
        tuple(f"{name}_{end}" for end in ("mean", "sd", "min", "max")),
        help=metric.study.help,
    )


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
        "epochs": result.get("epochs"),
        **{name: result.get(metric.name) for name, metric in metrics.items()},
        "seconds": result.get("seconds"),
        "run": record.get("run"),
        "error": f"{error.get('type', '')}: {error.get('message', '')}" if state == "failed" else None,
    }


_LONGEST = 160  # characters of an error's message in a table


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
