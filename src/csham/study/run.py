"""A whole comparison in one call, from what is asked for to the costs of a finished study: what ``csham compare`` does.

Start with :func:`compare`. Imports PyTorch only where new networks, budget controls, adopted runs or costs need it: the
cells are trained by other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.settings import check_choice
from csham.study.budget import add_controls, check_budget_control, step_times
from csham.study.costs import measure_costs
from csham.study.engines import Engine, Outcome, Task, plan_tasks
from csham.study.engines.local import available_cores, run_local
from csham.study.grid import Cell, Network, Study
from csham.study.plan import Plan, make_plan
from csham.study.progress import StudyProgress, create_study_progress
from csham.study.setup import Request, Setup, check_records, set_up
from csham.study.store import Store
from csham.study.study_file import FILE
from csham.training.interrupt import TimeLimit
from csham.training.progress import create_progress
from csham.words import counted

__all__ = ["ENGINES", "Finished", "choose_engine", "compare", "dry_run"]

ENGINES = ("local", "ray")

_LEAST_SECONDS, _MOST_SECONDS = 15.0, 300.0


@dataclass(frozen=True)
class Finished:
    """End of a comparison: what is done of it, and what is not.

    Attributes:
        store: The study's folder.
        cells: Cells that the call was to do.
        records: Records of the study, by the keys of the cells.
        signum: Signal that stopped the call early; None if nothing did.
    """

    store: Store
    cells: list[Cell]
    records: Mapping[str, Mapping[str, Any]]
    signum: int | None = None

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Records of the call's cells that failed."""
        records = (self.records.get(cell.key, {}) for cell in self.cells)
        return [record for record in records if record.get("status") == "failed"]

    @property
    def missing(self) -> list[Cell]:
        """Those of the call's cells that have no record."""
        return [cell for cell in self.cells if cell.key not in self.records]

    def to_dict(self) -> dict[str, Any]:
        """Return the cells of the whole study, as ``csham compare --json`` prints them."""
        cells = []
        for cell in self.store.study.cells():
            record = self.records.get(cell.key, {})
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
        finished = all(cell["state"] == "done" for cell in cells)
        return {"study": str(self.store.path), "finished": finished, "cells": cells}


def compare(
    request: Request,
    *,
    engine: Engine | None = None,
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    adopt: Path | None = None,
    merge: Sequence[Path] = (),
    training: bool = True,
    budget_control: bool = False,
    costs: bool = True,
    quiet: bool = False,
    limit: TimeLimit | None = None,
) -> Finished:
    """Train every network with every seed, and measure what each costs; the same call again goes on.

    :func:`csham.study.results.assess` says what the records mean, :func:`csham.report.study_report.write_report`
    writes the report.

    Args:
        request: Data, networks, seeds and settings; what it leaves out is as on the command line.
        engine: Engine that runs the cells, such as :func:`choose_engine` makes; None takes this machine's, one cell at
            a time.
        shard: (i, n): only every n-th cell of the study, from number i on, counted from 1.
        retry_failed: Try failed cells again.
        adopt: Folder of finished runs, which are copied into the study first where they are cells of it.
        merge: Other stores of the study, whose finished cells are taken into it first.
        training: False to train and measure nothing: ``study.yaml`` is written, and what is there is put together.
        budget_control: Extend the study by plain networks, wider and deeper, of the same training time.
        costs: Measure all networks side by side, once every cell of the study is done or has failed.
        quiet: Show no progress.
        limit: Time by which it is to have ended, as the engine has it too; costs are measured if enough is left.

    Raises:
        UserError: Something asked for cannot be, or differs from what the study began with.
        KeyboardInterrupt: A second signal stopped it at once.
    """
    _check_budget_control(request, budget_control)
    progress = create_study_progress(quiet=quiet)
    try:
        taken = bool(adopt or merge)  # cells that are open now may be done before any is trained

        def check(setup: Setup) -> None:
            _check_merge(merge, setup)
            if training and not taken:
                _tasks(setup.store, setup.study, shard, retry_failed=retry_failed)

        setup = _set_up(request, progress, budget_control=budget_control, write=True, check=check)
        store = setup.store
        _prepare_store(setup, progress, adopt, merge)
        if not training:
            return Finished(store, store.study.part(shard), store.by_key())
        if budget_control:
            progress.close()
            _find_controls(store, request.machine, quiet=quiet)
        outcome = _train(store, request.machine, progress, engine or run_local, shard, retry_failed=retry_failed)
    finally:
        progress.close()
    study, records = store.study, store.by_key()
    if costs and outcome.signum is None and all(cell.key in records for cell in study.cells()):
        _measure_costs(store, records, request.machine.get("device", "auto"), limit, quiet=quiet)
    return Finished(store, study.part(shard), records, outcome.signum)


def dry_run(
    request: Request,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    budget_control: bool = False,
    quiet: bool = False,
) -> Plan:
    """List the cells that :func:`compare` would train, with the hours it would take; nothing is written."""
    _check_budget_control(request, budget_control)
    progress = create_study_progress(quiet=quiet)
    try:
        setup = _set_up(request, progress, budget_control=budget_control, write=False)
        if budget_control:
            progress.note("budget controls are found by measuring, and come on top of these")
        return make_plan(setup, request.machine, jobs=jobs, shard=shard, progress=progress)
    finally:
        progress.close()


def choose_engine(
    name: str = "local",
    *,
    jobs: int | None = None,
    together: bool | None = None,
    address: str | None = None,
    cpus_per_cell: int | None = None,
    wait: bool = True,
    limit: TimeLimit | None = None,
) -> Engine:
    """Return what runs the cells.

    Args:
        name: ``"local"``, processes of this machine, or ``"ray"``, a cluster.
        jobs: Cells to train at the same time on this machine; None is one, or on a GPU as many as are worth it.
        together: True if one process trains them in turns, one for each GPU where there are any; None where there are.
        address: Of the Ray cluster, or ``"auto"``; None begins one on this machine.
        cpus_per_cell: Of ray: cores that a cell gets; None shares this machine's among the jobs.
        wait: Wait for cells that other processes work on.
        limit: Time by which all that runs has stopped and saved.
    """
    check_choice("engine", name, ENGINES)
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    if name == "local":
        for flag, value in (("--address", address), ("--cpus-per-cell", cpus_per_cell)):
            if value is not None:
                raise UserError(f"{flag} is an option of --engine ray. Leave it out, or name that engine.")
        return partial(run_local, jobs=jobs, together=together, wait=wait, limit=limit)
    if together is not None:
        raise UserError("--together is an option of --engine local, where a process trains one cell. Leave it out.")
    # Imported here: only this needs Ray.
    from csham.study.engines.ray import run_ray  # noqa: PLC0415

    cpus = max(1, available_cores() // (jobs or 1)) if cpus_per_cell is None else cpus_per_cell
    if cpus < 1:
        raise UserError(f"--cpus-per-cell must be at least 1, got {cpus}.")
    return partial(run_ray, address=address, num_cpus=cpus, wait=wait, limit=limit)


def _check_budget_control(request: Request, budget_control: bool) -> None:
    """Refuse what has no controls before anything is written or read."""
    if budget_control:
        check_budget_control([*map(Network, request.backbones), *request.networks])


def _set_up(
    request: Request,
    progress: StudyProgress,
    *,
    budget_control: bool,
    write: bool,
    check: Callable[[Setup], None] = lambda _: None,
) -> Setup:
    setup = set_up(request, progress.note, progress.preparing, write=write, check=check)
    for note in setup.notes:
        progress.note(note)
    if budget_control:
        check_budget_control(setup.study.networks)
    return setup


def _check_merge(merge: Sequence[Path], setup: Setup) -> None:
    """Refuse stores that cannot be merged before the study is written or extended."""
    if merge:
        from csham.study.merging import open_stores  # noqa: PLC0415  imports scipy

        open_stores(setup.study, setup.store, merge, note=lambda _: None)  # told when they are merged


def _prepare_store(setup: Setup, progress: StudyProgress, adopt: Path | None, merge: Sequence[Path]) -> None:
    """Repair the records, check that they are the study's, and take finished cells over from elsewhere."""
    setup.store.repair()
    for note in check_records(setup.study, setup.store.records(), setup.store.path):
        progress.note(note)
    if adopt is not None:
        from csham.study.cell import adopt_runs  # noqa: PLC0415  imports torch

        adopt_runs(setup.store, adopt, progress.note)
    if merge:
        from csham.study.merging import merge_records  # noqa: PLC0415  imports scipy

        merge_records(setup.store, merge, progress.note)


def _find_controls(store: Store, machine: Mapping[str, Any], *, quiet: bool) -> None:
    """Extend the study by budget controls, which takes some minutes of measuring the first time."""
    study, progress = store.study, create_progress(quiet=quiet)
    measure = step_times(
        num_classes=study.data.classes,
        image_size=study.data.image_size,
        batch_size=study.settings["batch_size"],
        precision=study.settings["precision"],
        device=machine.get("device", "auto"),
        progress=progress,
    )
    try:
        add_controls(store, measure, progress.note)
    finally:
        progress.close()


def _train(
    store: Store,
    machine: Mapping[str, Any],
    progress: StudyProgress,
    engine: Engine,
    shard: tuple[int, int],
    *,
    retry_failed: bool,
) -> Outcome:
    """Do what is left to do."""
    study, records = store.study, store.by_key()
    tasks = _tasks(store, study, shard, retry_failed=retry_failed)
    cells = study.part(shard)
    progress.begin(len(cells), sum(records.get(cell.key, {}).get("status") == "done" for cell in cells))
    return engine(store, tasks, machine, progress) if tasks else Outcome()


def _tasks(store: Store, study: Study, shard: tuple[int, int], *, retry_failed: bool) -> list[Task]:
    """Choose the cells to be done, and refuse all of them if some need code that was edited since, and would fail."""
    tasks = plan_tasks(study, store.by_key(), retry_failed=retry_failed, shard=shard)
    for network in dict.fromkeys(task.cell.network for task in tasks):
        if changed := network.changed_code:
            seeds = [task.cell.seed for task in tasks if task.cell.network == network]
            need = f"{counted(len(seeds), 'run')} to come of {network.label} need{'s' if len(seeds) == 1 else ''}"
            more = store.exists and set(seeds).isdisjoint(store.study.seeds)
            raise UserError(
                f"{changed}. {need} the old one, so nothing is trained. Put the old code back, or take that network "
                f"out of {store.path / FILE}{_NO_MORE_SEEDS if more else ''}."
            )
    return tasks


_NO_MORE_SEEDS = (
    "; or ask for no more seeds, and name the new code with --attentions (--backbones): that adds another network, and "
    "what is done stays"
)


def _measure_costs(
    store: Store, records: Mapping[str, Mapping[str, Any]], device: str, limit: TimeLimit | None, *, quiet: bool
) -> None:
    """Measure for a tenth of the time that training took, within bounds; the report comes after it."""
    trained = sum(float(record.get("result", {}).get("seconds") or 0.0) for record in records.values())
    seconds = min(max(trained / 10, _LEAST_SECONDS), _MOST_SECONDS)
    progress = create_progress(quiet=quiet)
    if limit is not None and limit.left() < 2 * seconds:
        progress.note(
            f"costs are not measured: that takes {seconds:.0f} s and the time is nearly over. The next call does it"
        )
        return
    try:
        with store.concluding():
            measure_costs(store.study, store.path, device=device, seconds=seconds, progress=progress)
    finally:
        progress.close()
