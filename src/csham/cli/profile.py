"""``csham profile``: what attentions cost, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csham.attach.names import STRATEGIES
from csham.backbones.lookup import find_backbone
from csham.backbones.own import OwnBackbone
from csham.backbones.spec import NETWORK_FIELDS, NetworkSpec
from csham.cli.common import check_counts, print_json, print_table, use_named_code
from csham.cli.options import (
    MACHINE,
    OUTPUT,
    CodeOption,
    DebugOption,
    JsonOption,
    QuietOption,
    names_in,
    option,
    split_numbers,
    takes_settings,
)
from csham.errors import UserError, unknown_name
from csham.files import write_atomically
from csham.layers.names import ATTENTIONS
from csham.provenance import circumstances
from csham.report.cost_figure import FIGURE_FORMATS, write_cost_figure
from csham.report.tables import write_csv
from csham.settings import Help
from csham.study.costs import make_comparison, run_comparison
from csham.training.config import DataSettings, MachineSettings
from csham.training.outputs import check_output
from csham.training.progress import create_progress
from csham.words import counted, say

if TYPE_CHECKING:
    from csham.cost import Comparison, Cost, Spread

__all__ = ["profile"]

_LEGEND = (
    "+%: more than the first row; x: times the first row's time, the median over rounds; ±: half the distance between "
    "the quartiles. FLOPs: all operations for one image; those of convolutions and products alone are in --csv and "
    "--json. Latency: one image. Peak: with parameters and batch; of training, with gradients and momentum too."
)

_MEASURE = "Measuring"
_PLAIN = "none"
_ATTENTIONS, _STRATEGIES = ("csham", "se", "eca", "cbam"), ("sequential",)
_SEVERAL = {
    "attention": Help("Some of csham list attentions, separated by commas, or all.", default=",".join(_ATTENTIONS)),
    "strategy": Help(
        "Some of csham list strategies, where the attention has the parts for it, or all.",
        default=",".join(_STRATEGIES),
    ),
}

Pair = tuple[str, str]  # attention, strategy


@takes_settings(
    NetworkSpec,
    DataSettings,
    MachineSettings,
    only=(*NETWORK_FIELDS, "image_size", "device", "compile"),
    several=_SEVERAL,
    defaults={"image_size": "224, or 32 for CIFAR's own networks", "compile": "no-compile"},
)
def profile(
    *,
    settings: dict[str, Any],
    num_classes: Annotated[int, option("Width of the logits.", NetworkSpec.panel)] = 1000,
    batch_size: Annotated[
        str | None,
        option(
            "Images a batch, several separated by commas; latency is of one image.",
            _MEASURE,
            "8 or, on a GPU, 64",
        ),
    ] = None,
    precision: Annotated[str, option("fp32, bf16 or both, separated by commas.", _MEASURE)] = "fp32",
    both: Annotated[bool, option("Measure eager and compiled.", _MEASURE, True, "--both")] = False,
    training: Annotated[bool, option("Measure training steps too.", _MEASURE, True, "--training/--no-training")] = True,
    rounds: Annotated[int | None, option("Exactly so many.", _MEASURE, "3 to 15, as --seconds allows")] = None,
    seconds: Annotated[float, option("When to begin no further round, after the third.", _MEASURE)] = 480.0,
    seed: Annotated[int, option("Of weights, images and the order in each round.", _MEASURE)] = 0,
    threads: Annotated[int | None, option("Threads on the CPU.", MACHINE, "PyTorch's choice")] = None,
    code: CodeOption = None,
    csv: Annotated[Path | None, option("Write the rows, with machine and versions.", OUTPUT, "no file")] = None,
    output: Annotated[Path | None, option("Write what --json prints.", OUTPUT, "no file")] = None,
    plot: Annotated[Path | None, option("Draw a picture: .png, .svg or .pdf.", OUTPUT, "no file")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Parameters, FLOPs, latency, throughput, training step and memory, side by side."""
    use_named_code(code, settings.get("attention", ()), [str(settings.get("backbone", ""))])
    attentions = _names("attention", settings.pop("attention", _ATTENTIONS), ATTENTIONS)
    strategies = _names("strategy", settings.pop("strategy", _STRATEGIES), STRATEGIES)
    image_size, device = settings.pop("image_size", None), settings.pop("device", "auto")
    compiled, period = settings.pop("compile", False), settings.pop("period", None)
    networks = {
        name: NetworkSpec(
            attention=attention, strategy=strategy, period=period if strategy == "transfer" else None, **settings
        )
        for name, (attention, strategy) in _pairs(attentions, strategies).items()
    }
    backbone = networks[_PLAIN].backbone
    MachineSettings(device=device)  # checks it
    for network in networks.values():
        network.check_names()
    check_counts(num_classes=num_classes, image_size=image_size, rounds=rounds, threads=threads)
    batch_sizes = None if batch_size is None else _batch_sizes(batch_size)
    precisions = _names("precision", names_in("--precision", precision), ("fp32", "bf16"))
    for name, file in {"--csv": csv, "--output": output, "--plot": plot}.items():
        check_output(name, file, text=name != "--plot")
    if plot is not None and plot.suffix.lower() not in FIGURE_FORMATS:
        raise UserError(f"--plot {plot}: its name must end in {', '.join(FIGURE_FORMATS)}.")
    image_size = image_size or _usual_size(backbone)
    progress = create_progress(quiet=quiet)
    comparison = make_comparison(
        networks,
        num_classes=num_classes,
        image_size=image_size,
        device=device,
        threads=threads,
        progress=progress,
        batch_sizes=batch_sizes,
        precisions=precisions,
        compiled=(False, True) if both else (compiled,),
        training=training,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    try:
        finished = run_comparison(comparison)
    finally:
        progress.close()
    costs = comparison.costs()
    if all(cost.flops is None for cost in costs) and finished:
        raise UserError(f"{backbone} cannot be measured: {costs[0].failed}")
    machine = circumstances()
    rows = [_row(cost, networks[cost.name], num_classes) for cost in costs]
    found = {"finished": finished, "machine": machine, "costs": rows}
    if csv is not None:
        write_csv(csv, [row | machine for row in rows])
    if output is not None:
        write_atomically(output, lambda file: file.write((json.dumps(found, indent=2) + "\n").encode()))
    title = _title(backbone, image_size, machine, comparison)
    if plot is not None:
        write_cost_figure(plot, costs, title)
    if as_json:
        print_json(found)
    else:
        _print_costs(title, costs)
    if not finished:
        say("stopped; this is what had been measured by then.", error=True)
        raise typer.Exit(130)


def _names(kind: str, names: Sequence[str], choices: Iterable[str]) -> Sequence[str]:
    """Check names; ``all`` among them is every one of ``choices``."""
    known = [name for name in choices if name != _PLAIN]
    for name in names:
        if name not in (*known, _PLAIN, "all"):
            raise unknown_name(kind, name, [*known, "all"])
    return known if "all" in names else names


def _pairs(attentions: Sequence[str], strategies: Sequence[str]) -> dict[str, Pair]:
    """Name every network: the plain one first, then each attention with each strategy that it has the parts for."""
    pairs = [
        (attention, strategy)
        for attention in attentions
        for strategy in strategies
        if attention != _PLAIN and (ATTENTIONS[attention].two_part or not STRATEGIES[strategy].needs_parts)
    ]
    if not pairs and set(attentions) != {_PLAIN}:
        raise UserError(
            f"none of these attentions has the parts that strategy {' or '.join(strategies)} needs. Add --strategy "
            "sequential, or an attention of two parts such as csham."
        )
    many = len({strategy for _, strategy in pairs}) > 1
    named = {f"{attention} {strategy}" if many else attention: (attention, strategy) for attention, strategy in pairs}
    return {_PLAIN: (_PLAIN, "sequential"), **named}


def _row(cost: Cost, network: NetworkSpec, num_classes: int) -> dict[str, Any]:
    measured = cost.to_row()
    del measured["network"]
    row = {name: value for name, value in network.to_dict().items() if name != "period"}
    row["strategy"] = network.strategy if network.attention != _PLAIN else ""
    return row | {"num_classes": num_classes} | measured


def _title(backbone: str, image_size: int, machine: dict[str, Any], comparison: Comparison) -> str:
    where = comparison.where
    if comparison.device.type == "cpu":
        where = f"{machine['processor']}, {counted(machine['threads'], 'thread')}"
    return f"{backbone}, {image_size} pixels, on {where}, torch {machine['torch']}"


def _usual_size(backbone: str) -> int:
    entry = find_backbone(backbone).entry
    if isinstance(entry, OwnBackbone) and entry.usual_size is not None:
        return entry.usual_size
    return 32 if entry is not None and entry.library == "csham" else 224


def _batch_sizes(words: str) -> tuple[int, ...]:
    numbers = tuple(dict.fromkeys(split_numbers("--batch-size", words)))
    if not numbers or min(numbers) < 1:
        raise UserError(f"--batch-size must be at least 1, got {words}.")
    return numbers


def _print_costs(title: str, costs: Sequence[Cost]) -> None:
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
