"""``csham compare``: a study, every network with every seed, from the grid to the table of what came out."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from csham.cli.common import (
    MACHINE,
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    print_json,
    split_list,
    split_numbers,
)
from csham.cli.compare_plan import show_plan
from csham.cli.options import (
    NETWORK,
    TRAINING,
    BatchSizeOption,
    ChannelsLastOption,
    CheckpointSecondsOption,
    CheckpointStepsOption,
    CompileOption,
    CropOption,
    CropScaleOption,
    EpochsOption,
    GatedOption,
    ImageSizeOption,
    LabelSmoothingOption,
    LrOption,
    MaxBadOption,
    PeriodOption,
    PointsOption,
    PositionOption,
    PrecisionOption,
    PretrainedOption,
    RecipeOption,
    StagesOption,
    TrackTestOption,
    ValidationOption,
    WeightDecayOption,
    WeightsFileOption,
    option,
)
from csham.errors import UserError
from csham.study.engines import Outcome, plan_tasks
from csham.study.engines.local import run_local
from csham.study.grid import MACHINE_FIELDS, SHARED_FIELDS, Cell, Study, read_seeds
from csham.study.progress import StudyProgress, create_study_progress
from csham.study.setup import Request, Setup, check_records, merged, read_request_file, set_up
from csham.study.store import Store

__all__ = ["compare"]

_STUDY = "Study"
_ATTACHED = ("period", "position", "gated")


def compare(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A dataset (csham list datasets) or an image folder; left out, the one of --study.", show_default=False
        ),
    ] = None,
    *,
    backbones: Annotated[str | None, option("Some of csham list backbones.", NETWORK, "resnet18")] = None,
    attentions: Annotated[
        str | None,
        option(
            "Some of csham list attentions, or all; csham:transfer sets one's strategy.",
            NETWORK,
            "none,se,eca,cbam,csham",
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        option("Some of csham list strategies, for attentions that have the parts for it.", NETWORK, "sequential"),
    ] = None,
    period: PeriodOption = None,
    position: PositionOption = None,
    points: PointsOption = None,
    stages: StagesOption = None,
    gated: GatedOption = None,
    pretrained: PretrainedOption = None,
    weights_file: WeightsFileOption = None,
    seeds: Annotated[str | None, option("How many, or which: 5, or 0,3,5.", TRAINING, "5")] = None,
    recipe: RecipeOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: LrOption = None,
    weight_decay: WeightDecayOption = None,
    label_smoothing: LabelSmoothingOption = None,
    track_test: TrackTestOption = None,
    image_size: ImageSizeOption = None,
    crop: CropOption = None,
    crop_scale: CropScaleOption = None,
    validation: ValidationOption = None,
    max_bad: MaxBadOption = None,
    study: Annotated[
        Path | None, option("The study's folder, new or to go on with.", _STUDY, "studies/<data>-<recipe>-<epochs>")
    ] = None,
    config: Annotated[
        Path | None, option("Names and settings from a YAML file, such as a study.yaml.", _STUDY, "none")
    ] = None,
    worthwhile: Annotated[
        float | None, option("Smallest difference of top-1 worth having, in percent.", _STUDY, "0.5")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed cells again.", rich_help_panel=_STUDY)
    ] = False,
    adopt: Annotated[
        Path | None,
        option("Copy finished runs of the study's settings from this folder into it first.", _STUDY, "none"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and the hours, and do nothing.", rich_help_panel=_STUDY)
    ] = False,
    jobs: Annotated[int, typer.Option(help="Cells to train at the same time.", rich_help_panel=MACHINE)] = 1,
    shard: Annotated[
        str | None, option("Only part i of n of the cells, for a batch system: 1/4.", MACHINE, "all cells")
    ] = None,
    checkpoint_seconds: CheckpointSecondsOption = None,
    checkpoint_steps: CheckpointStepsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    compile: CompileOption = None,
    channels_last: ChannelsLastOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train every network with every seed, and compare; call it again to go on, or with more to extend it."""
    request = _request(ctx)
    part = _shard(shard)
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    progress = create_study_progress(quiet=quiet)
    try:
        setup = set_up(request, progress.note, progress.preparing, write=not dry_run)
        for note in setup.notes:
            progress.note(note)
        if dry_run:
            progress.close()
            show_plan(setup, request.machine, jobs=jobs, shard=part, as_json=as_json, progress=progress)
            return
        outcome = _run(setup, request.machine, progress, jobs=jobs, shard=part, retry_failed=retry_failed, adopt=adopt)
    except KeyboardInterrupt:
        progress.close()
        typer.echo("stopped at once.", err=True)
        raise typer.Exit(130) from None
    finally:
        progress.close()
    _conclude(setup.store, part, outcome, as_json=as_json)


def _request(ctx: typer.Context) -> Request:
    """Put the command line, and the file it names, together."""
    given = {name: value for name, value in ctx.params.items() if value is not None}
    attached = {name: given[name] for name in _ATTACHED if name in given}
    if "points" in given:
        attached["points"] = tuple(split_list(given["points"]))
    if "stages" in given:
        attached["stages"] = tuple(split_numbers("--stages", given["stages"]))
    words = ctx.obj if isinstance(ctx.obj, list) else sys.argv[1:]
    request = Request(
        data=given.get("data"),
        folder=given.get("study"),
        backbones=_names("backbones", given),
        attentions=_names("attentions", given),
        strategies=_names("strategies", given),
        attached=attached,
        seeds=read_seeds(given["seeds"]) if "seeds" in given else (),
        settings={name: given[name] for name in SHARED_FIELDS if name in given},
        machine={name: given[name] for name in MACHINE_FIELDS if name in given},
        worthwhile=given.get("worthwhile"),
        command=shlex.join(["csham", *words]),
    )
    return merged(read_request_file(given["config"]), request) if "config" in given else request


def _names(name: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    if name not in given:
        return ()
    words = tuple(dict.fromkeys(split_list(given[name])))
    if not words:
        raise UserError(f"--{name} names nothing.")
    return words


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard takes part and number of parts, 1/4 to 4/4 for four; got {text!r}.")
    return part, parts


def _run(
    setup: Setup,
    machine: Mapping[str, Any],
    progress: StudyProgress,
    *,
    jobs: int,
    shard: tuple[int, int],
    retry_failed: bool,
    adopt: Path | None,
) -> Outcome:
    """Do what is left to do."""
    store, study = setup.store, setup.study
    store.repair()
    for note in check_records(study, store.records(), store.path):
        progress.note(note)
    if adopt is not None:
        # Imported here: only this needs PyTorch.
        from csham.study.adopt import adopt_runs  # noqa: PLC0415

        adopt_runs(store, adopt, progress.note)
    records = store.by_key()
    tasks = plan_tasks(study, records, retry_failed=retry_failed, shard=shard)
    mine = _part(study, shard)
    progress.begin(len(mine), sum(records.get(cell.key, {}).get("status") == "done" for cell in mine))
    if not tasks:
        return Outcome()
    return run_local(store, tasks, machine, progress, jobs=min(jobs, len(tasks)), wait=shard == (1, 1))


def _part(study: Study, shard: tuple[int, int]) -> list[Cell]:
    return study.cells()[shard[0] - 1 :: shard[1]]


def _conclude(store: Store, shard: tuple[int, int], outcome: Outcome, *, as_json: bool) -> None:
    """Say what came out, and end with the exit code that says whether it is all."""
    # Imported here: scipy and what draws take seconds, which the first cell need not wait for.
    from csham.cli.study_results import print_results  # noqa: PLC0415
    from csham.report.study_report import write_report  # noqa: PLC0415

    study, records = store.study, store.by_key()
    cells = _part(study, shard)
    failed = [records[cell.key] for cell in cells if records.get(cell.key, {}).get("status") == "failed"]
    missing = [cell for cell in cells if cell.key not in records]
    report = write_report(store.path)
    if as_json:
        print_json(_as_json(store, study, records) | {"results": report.results.to_dict(), "report": str(report.page)})
    else:
        print_results(f"{store.path}: test top-1 of the last epoch", report.results)
        print(report.results.headline)
        print(f"report: {shlex.quote(str(report.page))}")
    if outcome.signum is not None:
        typer.echo(f"stopped, and saved. To go on: csham compare --study {shlex.quote(str(store.path))}", err=True)
        raise typer.Exit(128 + outcome.signum)
    if failed:
        _list_failed(store, failed)
    if missing:
        typer.echo(f"{len(missing)} of {len(cells)} cells are not done: {missing[0].label}, ...", err=True)
    if failed or missing:
        raise typer.Exit(1)


def _list_failed(store: Store, failed: Sequence[Mapping[str, Any]]) -> None:
    lines = [f"{len(failed)} failed:"]
    for record in failed:
        error = record.get("error", {})
        said = (str(error.get("message", "")).splitlines() or [""])[0]
        lines.append(f"  {record['label']}, seed {record['seed']}: {error.get('type', 'Error')}: {said}")
    lines.append(f"To try these again: csham compare --study {shlex.quote(str(store.path))} --retry-failed")
    typer.echo("\n".join(lines), err=True)


def _as_json(store: Store, study: Study, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    cells = []
    for cell in study.cells():
        record = records.get(cell.key, {})
        cells.append(
            {
                "network": cell.network.label,
                "seed": cell.seed,
                "key": cell.key,
                "state": record.get("status", "to do"),
                "top1": record.get("result", {}).get("top1"),
                "run": record.get("run"),
                "error": record.get("error", {}).get("message"),
            }
        )
    return {"study": str(store.path), "finished": all(cell["state"] == "done" for cell in cells), "cells": cells}
