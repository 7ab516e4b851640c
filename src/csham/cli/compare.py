"""``csham compare``: a study, every network with every seed, from the grid to the table of what came out."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from csham.backbones.spec import CONNECTION_FIELDS, NetworkSpec
from csham.cli.common import check_report_packages
from csham.cli.compare_end import conclude, part_of
from csham.cli.compare_plan import show_plan
from csham.cli.compare_start import check_store, find_controls
from csham.cli.options import DATA_HELP, MACHINE, DebugOption, JsonOption, QuietOption, option, takes_settings
from csham.errors import UserError, unknown_name
from csham.settings import Help
from csham.study.budget import check_budget_control
from csham.study.engines import Engine, Outcome, plan_tasks
from csham.study.engines.local import available_cores, run_local
from csham.study.grid import MACHINE_FIELDS, SHARED_FIELDS, Network, read_seeds
from csham.study.progress import StudyProgress, create_study_progress
from csham.study.setup import Request, merged, read_request_file, set_up
from csham.study.store import Store
from csham.training.config import DataSettings, MachineSettings, TrainingSettings
from csham.words import say

__all__ = ["compare"]

_STUDY = "Study"
_ENGINES = ("local", "ray")

_SEVERAL = {
    "backbones": Help("Some of csham list backbones, or of timm's or torchvision's.", default="resnet18"),
    "attentions": Help(
        "Some of csham list attentions, or all; csham:transfer sets one's strategy.", default="none,se,eca,cbam,csham"
    ),
    "strategies": Help(
        "Some of csham list strategies, for attentions that have the parts for it.", default="sequential"
    ),
}


@takes_settings(NetworkSpec, TrainingSettings, DataSettings, MachineSettings, without=("seed",), several=_SEVERAL)
def compare(
    ctx: typer.Context,
    data: Annotated[
        str | None, typer.Argument(help=f"{DATA_HELP}; left out, the one of --study.", show_default=False)
    ] = None,
    *,
    settings: dict[str, Any],
    seeds: Annotated[str | None, option("How many, or which: 5, or 0,3,5.", TrainingSettings.panel, "5")] = None,
    seed: Annotated[str | None, typer.Option(hidden=True)] = None,
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
    budget_control: Annotated[
        bool,
        typer.Option(
            "--budget-control",
            help="Beside each attention plain networks, wider and deeper, of the same training time.",
            rich_help_panel=_STUDY,
        ),
    ] = False,
    costs: Annotated[
        bool,
        typer.Option(
            "--costs/--no-costs", help="Measure all networks side by side at the end.", rich_help_panel=_STUDY
        ),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and the hours, and do nothing.", rich_help_panel=_STUDY)
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, processes of this machine, or ray, a cluster.", rich_help_panel=MACHINE)
    ] = "local",
    address: Annotated[
        str | None, option("Of the Ray cluster, or auto.", MACHINE, "one on this machine for this call")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Cells to train at the same time on this machine.", rich_help_panel=MACHINE)
    ] = 1,
    cpus_per_cell: Annotated[
        int | None, option("Of ray: cores that a cell gets, and its threads.", MACHINE, "this machine's / --jobs")
    ] = None,
    shard: Annotated[
        str | None, option("Only part i of n of the cells, for a batch system: 1/4.", MACHINE, "all cells")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train every network with every seed, and compare; call it again to go on, or with more to extend it."""
    check_report_packages()
    words = ctx.obj if isinstance(ctx.obj, list) else sys.argv[1:]
    request = Request(
        data=data,
        folder=study,
        backbones=settings.get("backbone", ()),
        attentions=settings.get("attention", ()),
        strategies=settings.get("strategy", ()),
        attached={name: settings[name] for name in CONNECTION_FIELDS if name in settings and name != "strategy"},
        seeds=_seeds(seeds, seed),
        settings={name: settings[name] for name in SHARED_FIELDS if name in settings},
        machine={name: settings[name] for name in MACHINE_FIELDS if name in settings},
        worthwhile=worthwhile,
        command=shlex.join(["csham", *words]),
    )
    if config is not None:
        request = merged(read_request_file(config), request)
    part = _shard(shard)
    run = _engine(engine, address, jobs, cpus_per_cell, wait=part == (1, 1))
    if budget_control:  # before anything is written
        check_budget_control([*map(Network, request.backbones), *request.networks])
    progress = create_study_progress(quiet=quiet)
    try:
        setup = set_up(request, progress.note, progress.preparing, write=not dry_run)
        for note in setup.notes:
            progress.note(note)
        if budget_control:
            check_budget_control(setup.study.networks)
        if dry_run:
            if budget_control:
                progress.note("budget controls are found by measuring, and come on top of these")
            progress.close()
            show_plan(setup, request.machine, jobs=jobs, shard=part, as_json=as_json, progress=progress)
            return
        check_store(setup, progress, adopt)
        if budget_control:
            progress.close()
            find_controls(setup.store, request.machine, quiet=quiet)
        outcome = _train(setup.store, request.machine, progress, run, shard=part, retry_failed=retry_failed)
    except KeyboardInterrupt:
        progress.close()
        say("stopped at once; what was trained since the last checkpoints is lost.", error=True)
        raise typer.Exit(130) from None
    finally:
        progress.close()
    conclude(
        setup.store,
        part,
        outcome,
        costs=costs,
        device=request.machine.get("device", "auto"),
        quiet=quiet,
        as_json=as_json,
    )


def _seeds(several: str | None, one: str | None) -> tuple[int, ...]:
    """Read ``--seeds``, how many or which, or ``--seed``, which."""
    if several is not None and one is not None:
        raise UserError("--seeds and --seed are the same option. Give it once.")
    if one is not None:
        return read_seeds(f"{one},")
    return () if several is None else read_seeds(several)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard takes part and number of parts, 1/4 to 4/4 for four; got {text!r}.")
    return part, parts


def _engine(name: str, address: str | None, jobs: int, cpus_per_cell: int | None, *, wait: bool) -> Engine:
    """Return what runs the cells."""
    if name not in _ENGINES:
        raise unknown_name("engine", name, _ENGINES)
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    if name == "local":
        for option_name, value in (("--address", address), ("--cpus-per-cell", cpus_per_cell)):
            if value is not None:
                raise UserError(f"{option_name} is an option of --engine ray. Leave it out, or name that engine.")
        return partial(run_local, jobs=jobs, wait=wait)
    # Imported here: only this needs Ray.
    from csham.study.engines.ray import run_ray  # noqa: PLC0415

    cpus = max(1, available_cores() // jobs) if cpus_per_cell is None else cpus_per_cell
    if cpus < 1:
        raise UserError(f"--cpus-per-cell must be at least 1, got {cpus}.")
    return partial(run_ray, address=address, num_cpus=cpus, wait=wait)


def _train(
    store: Store,
    machine: Mapping[str, Any],
    progress: StudyProgress,
    run: Engine,
    *,
    shard: tuple[int, int],
    retry_failed: bool,
) -> Outcome:
    """Do what is left to do."""
    study, records = store.study, store.by_key()
    tasks = plan_tasks(study, records, retry_failed=retry_failed, shard=shard)
    mine = part_of(study, shard)
    progress.begin(len(mine), sum(records.get(cell.key, {}).get("status") == "done" for cell in mine))
    return run(store, tasks, machine, progress) if tasks else Outcome()
