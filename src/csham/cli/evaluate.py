"""``csham evaluate``: all metrics of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import csham.training
from csham.cli.common import check_counts, metrics_table, print_json, print_table, use_named_code
from csham.cli.options import MACHINE, CodeOption, DebugOption, DeviceOption, JsonOption, QuietOption, WeightsOption
from csham.training.metrics import METRICS
from csham.training.progress import create_progress
from csham.training.run_folder import RunFolder, RunWeights, check_choice
from csham.words import say

__all__ = ["evaluate"]

# A larger confusion matrix does not fit on a terminal; confusion.csv and --json have it all.
_CLASSES_SHOWN = 12


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    data: Annotated[
        str | None,
        typer.Argument(help="A dataset or images with the same classes.", show_default="the run's"),
    ] = None,
    *,
    weights: WeightsOption = None,
    part: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time.", show_default="the run's", rich_help_panel=MACHINE)
    ] = None,
    device: DeviceOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """All metrics of a run's network, with a table per class and the confusion matrix."""
    check_choice(weights)
    check_counts(batch_size=batch_size)
    use_named_code(code)
    RunFolder(run).read_config()
    progress = create_progress(quiet=quiet)
    try:
        found = csham.training.evaluate(
            run, data, weights=weights, part=part, device=device, batch_size=batch_size, progress=progress
        )
    finally:
        progress.close()
    if as_json:
        print_json(
            {
                **found.summary,
                "classes": found.classes,
                "per_class": found.per_class,
                "confusion": found.confusion.tolist(),
            }
        )
        return
    summary = found.summary
    metrics_table(f"{run}: {summary['part']} part of {summary['data']}", {str(RunWeights.from_dict(summary)): summary})
    if summary["absent_classes"]:
        say(f"{summary['absent_classes']} classes have no images here; macro averages leave them out", "")
    header = [METRICS[name].title if name in METRICS else name for name in found.per_class[0]]
    print_table("each class", header, (list(row.values()) for row in found.per_class))
    if len(found.classes) <= _CLASSES_SHOWN:
        rows = ([name, *counts] for name, counts in zip(found.classes, found.confusion.tolist(), strict=True))
        print_table("confusion: true class down, answer across", ["", *found.classes], rows)
