"""``csham evaluate``: all metrics of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import csham.training
from csham.cli.common import (
    check_counts,
    check_trained,
    metrics_table,
    print_json,
    print_table,
    use_named_code,
)
from csham.cli.options import (
    MACHINE,
    OUTPUT,
    CodeOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    TrainedArgument,
    TtaOption,
    WeightsOption,
)
from csham.report.evaluation import evaluation_json, write_evaluation
from csham.training.metrics import METRICS
from csham.training.outputs import check_folder
from csham.training.progress import create_progress
from csham.training.run_folder import RunFolder, RunWeights
from csham.words import counted, say

if TYPE_CHECKING:
    from csham.training.evaluation import Evaluation

__all__ = ["evaluate"]

# A larger confusion matrix does not fit on a terminal; confusion.csv and --json have it all.
_CLASSES_SHOWN = 12
_ERRORS_SHOWN = 5
_PAIRS_SHOWN = 10


def evaluate(
    run: TrainedArgument,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A dataset or images with the same classes; what is not a run folder needs it.",
            show_default="the run's",
        ),
    ] = None,
    *,
    weights: WeightsOption = None,
    part: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    tta: TtaOption = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time.", show_default="the run's", rich_help_panel=MACHINE)
    ] = None,
    device: DeviceOption = None,
    code: CodeOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the numbers as files, every error with its image's name, and pictures of calibration, the "
            "most confident errors and the confusion matrix.",
            show_default="none",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """All metrics of a run's network, with its most confident errors, a table per class and the confusion matrix."""
    check_trained(run, weights)
    check_counts(batch_size=batch_size)
    check_folder("--output", output, runs=[run], data=data)
    use_named_code(code)
    if RunFolder(run).config_file.exists():
        RunFolder(run).read_config()
    progress = create_progress(quiet=quiet)
    try:
        found = _evaluate(
            run, data, weights, part=part, device=device, batch_size=batch_size, tta=tta, progress=progress
        )
    finally:
        progress.close()
    files = [] if output is None else write_evaluation(output, found)
    if as_json:
        print_json(evaluation_json(found))
        return
    _print(run, found)
    if files:
        say(f"{len(files)} files in {output}: {', '.join(path.name for path in files)}")


def _evaluate(run: Path, data: str | None, weights: str | None, **how: Any) -> Evaluation:
    if RunFolder(run).config_file.exists():
        return csham.training.evaluate(run, data, weights=weights, **how)
    from csham.inference.evaluation import evaluate_shared  # noqa: PLC0415  torch takes seconds
    from csham.inference.trained import load  # noqa: PLC0415

    return evaluate_shared(load(run, weights=weights), data, **how)


def _print(run: Path, found: Evaluation) -> None:
    summary = found.summary
    metrics_table(f"{run}: {summary['part']} part of {summary['data']}", {str(RunWeights.from_dict(summary)): summary})
    if "note" in summary:
        say(summary["note"], "")
    if absent := summary["absent_classes"]:
        have = "has" if absent == 1 else "have"
        say(f"{counted(absent, 'class', 'es')} {have} no images here; macro averages leave them out", "")
    for name, reason in summary.get("undefined", {}).items():
        say(f"{METRICS[name].label} has no value here: {reason}", "")
    if "tta" in summary:
        say(f"test-time augmentation: {summary['tta']}", "")
    header = [METRICS[name].title if name in METRICS else name for name in found.per_class[0]]
    print_table("each class", header, (list(row.values()) for row in found.per_class))
    if len(found.classes) <= _CLASSES_SHOWN:
        rows = ([name, *counts] for name, counts in zip(found.classes, found.confusion.tolist(), strict=True))
        print_table("confusion: true class down, answer across", ["", *found.classes], rows)
    else:
        print_table("the most frequent confusions", ["true", "given", "images"], _confusions(found)[:_PAIRS_SHOWN])
    if errors := found.errors()[:_ERRORS_SHOWN]:
        header = ["image", "true", "given", "probability"]
        print_table("the most confident errors", header, ([row[name] for name in header] for row in errors))


def _confusions(found: Evaluation) -> list[tuple[str, str, int]]:
    """Return which classes were taken for which, and how often, the most frequent first."""
    counts = found.confusion.tolist()
    pairs = [
        (name, found.classes[given], count)
        for true, name in enumerate(found.classes)
        for given, count in enumerate(counts[true])
        if count and given != true
    ]
    return sorted(pairs, key=lambda pair: -pair[2])
