"""``csham compare``: a study, every network with every seed, and the table of what came out."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csham.backbones.spec import CONNECTION_FIELDS, NetworkSpec
from csham.cli.common import check_report_packages, code_words, print_json, print_table, time_limit, use_named_code
from csham.cli.options import (
    DATA_HELP,
    MACHINE,
    CodeOption,
    DebugOption,
    JsonOption,
    MinutesOption,
    QuietOption,
    given_words,
    option,
    split_numbers,
    takes_settings,
)
from csham.errors import UserError
from csham.settings import Help
from csham.study.grid import MACHINE_FIELDS, SHARED_FIELDS, WORTHWHILE, read_seeds
from csham.study.plan import Plan
from csham.study.run import Finished, choose_engine, dry_run
from csham.study.run import compare as run_study
from csham.study.setup import Request, merged, read_request_file
from csham.training.config import DataSettings, MachineSettings, TrainingSettings
from csham.training.interrupt import TIME_IS_OVER, TimeIsOverError, TimeLimit, why_stopped
from csham.training.metrics import METRICS
from csham.words import counted, path_word, say, some

if TYPE_CHECKING:
    from csham.study.findings import Comparison, Results

__all__ = ["compare"]

_STUDY = "Study"

_SEVERAL = {
    "backbones": Help(
        "Some of csham list backbones, of timm's or torchvision's, or my_module:make_net, your own.",
        default="resnet18",
    ),
    "attentions": Help(
        "Some of csham list attentions, or all, or my_module:MyGate, your own; csham:transfer sets one's strategy.",
        default="none,se,eca,cbam,csham",
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
        float | None,
        option("Smallest difference of top-1 worth having, in percentage points.", _STUDY, f"{WORTHWHILE:g}"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed cells again.", rich_help_panel=_STUDY)
    ] = False,
    adopt: Annotated[
        Path | None,
        option("Copy finished runs of the study's settings from this folder into it first.", _STUDY, "none"),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        option("Take in the finished cells of this study from another machine's store; several times.", _STUDY, "none"),
    ] = None,
    training: Annotated[
        bool,
        typer.Option(
            "--train/--no-train",
            help="Train what is missing; without, only write the plan, put together, and report.",
            rich_help_panel=_STUDY,
        ),
    ] = True,
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
    plan_only: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and the hours, and do nothing.", rich_help_panel=_STUDY)
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, processes of this machine, or ray, a cluster.", rich_help_panel=MACHINE)
    ] = "local",
    address: Annotated[
        str | None, option("Of the Ray cluster, or auto.", MACHINE, "one on this machine for this call")
    ] = None,
    jobs: Annotated[
        int | None,
        option("Cells to train at the same time on this machine.", MACHINE, "1; on a GPU as many as are worth it"),
    ] = None,
    together: Annotated[
        bool | None,
        typer.Option(
            "--together/--apart",
            help="Train them in turns in one process, one for each GPU, or each in a process of its own. "
            "Default: together on a GPU.",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    cpus_per_cell: Annotated[
        int | None, option("Of ray: cores that a cell gets, and its threads.", MACHINE, "this machine's / --jobs")
    ] = None,
    shard: Annotated[
        str | None, option("Only part i of n of the cells, for a batch system: 1/4.", MACHINE, "all cells")
    ] = None,
    minutes: MinutesOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train every network with every seed, and compare; call it again to go on, or with more to extend it."""
    use_named_code(code, settings.get("attention", ()), settings.get("backbone", ()))
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
    part, limit = _shard(shard), time_limit(minutes)
    run = choose_engine(
        engine,
        jobs=jobs,
        together=together,
        address=address,
        cpus_per_cell=cpus_per_cell,
        wait=part == (1, 1),
        limit=limit,
    )
    with _stoppable(limit):
        if plan_only:
            plan = dry_run(request, jobs=jobs or 1, shard=part, budget_control=budget_control, quiet=quiet)
            print_json(plan.to_dict()) if as_json else _print_plan(plan)
            return
        finished = run_study(
            request,
            engine=run,
            shard=part,
            retry_failed=retry_failed,
            adopt=adopt,
            merge=merge or (),
            training=training,
            budget_control=budget_control,
            costs=costs,
            quiet=quiet,
            limit=limit,
        )
        flags = {"--retry-failed": retry_failed, "--no-costs": not costs}
        how = [flag for flag, given in flags.items() if given] + given_words(ctx, MACHINE, request.machine)
        _conclude(finished, how, limit, as_json=as_json, training=training)


@contextmanager
def _stoppable(limit: TimeLimit | None) -> Iterator[None]:
    """Turn a study's being stopped at once into a sentence and an exit code."""
    try:
        with nullcontext() if limit is None else limit.enforced():
            yield
    except KeyboardInterrupt as err:
        signum = TIME_IS_OVER if isinstance(err, TimeIsOverError) else signal.SIGINT
        why = f"{why_stopped(signum, limit)} at once; what was trained since the last checkpoints is lost."
        say(why if limit is None else f"{why} The same command goes on.", error=True)
        raise typer.Exit(128 + signum) from None


def _seeds(several: str | None, one: str | None) -> tuple[int, ...]:
    """Read ``--seeds``, how many or which, or ``--seed``, which."""
    if several is not None and one is not None:
        raise UserError("--seeds and --seed are the same option. Give it once.")
    if one is not None:
        return read_seeds(split_numbers("--seed", one))
    return () if several is None else read_seeds(several)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard takes part and number of parts, 1/4 to 4/4 for four; got {text!r}.")
    return part, parts


def _print_plan(plan: Plan) -> None:
    rows = [
        [state.cell.network.label, state.cell.seed, state.sentence, _hours(plan.hours.get(state.cell.key))]
        for state in plan.states
    ]
    print_table(f"{plan.setup.store.path}: {counted(len(rows), 'cell')}", ["network", "seed", "state", "hours"], rows)
    for label, reason in plan.failures.items():
        say(f"{label} cannot be trained: {reason}", error=True)
    total = plan.total_hours
    if not plan.hours:
        say("nothing is left to do")
    elif total is not None:
        many = f" with {plan.jobs} jobs" if plan.jobs > 1 else ""
        say(
            f"{counted(len(plan.hours), 'cell')} to do: about {_duration(total)}{many}, estimated from a few training "
            "steps of each network on this machine, without torch.compile and the first minute of each process"
        )


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    if minutes < 90:
        return counted(max(minutes, 1), "minute")
    return f"{hours:.1f} hours"


def _conclude(
    finished: Finished, how: Sequence[str], limit: TimeLimit | None, *, as_json: bool, training: bool
) -> None:
    """Write the report, and say what came out.

    Args:
        finished: End of the comparison.
        how: Words of the call that the next one needs too, beside the study.
        limit: Time by which it was to have ended.
        as_json: Print the results as JSON.
        training: False if nothing was to be trained.

    Raises:
        typer.Exit: Something is not done that was to be.
    """
    path, failed, missing = finished.store.path, finished.failed, finished.missing
    again = f"csham compare --study {path_word(path)}" + code_words(finished.store.study.networks)
    if finished.signum is not None:
        again = f"{again} {shlex.join(how)}".rstrip()
        say(f"{why_stopped(finished.signum, limit)}, and saved. To go on: {again}", error=True)
        raise typer.Exit(128 + finished.signum)
    _report(finished, as_json=as_json)
    if failed:
        say(f"{len(failed)} failed:", *map(_failure, failed), error=True)
        say(f"To try these again: {again} {shlex.join(dict.fromkeys(['--retry-failed', *how]))}", error=True)
    if missing:
        cells, are = counted(len(finished.cells), "cell"), "is" if len(missing) == 1 else "are"
        say(f"{len(missing)} of {cells} {are} not done: {some((cell.label for cell in missing), 1)}", error=True)
    if training and (failed or missing):
        raise typer.Exit(1)


def _report(finished: Finished, *, as_json: bool) -> None:
    """Write the report and print the results, or say what they need."""
    path = finished.store.path
    try:
        check_report_packages()
    except UserError as err:  # the runs are kept all the same
        if as_json:
            print_json(finished.to_dict() | {"results": None, "report": None})
        say(f"The runs of {path} are saved; {err} Then: csham report {path_word(path)}", error=True)
        return
    from csham.report.study_report import write_report  # noqa: PLC0415  scipy and what draws take seconds

    with finished.store.concluding():
        report = write_report(path)
    if as_json:
        print_json(finished.to_dict() | {"results": report.results.to_dict(), "report": str(report.page)})
    else:
        _print_results(f"{path}: test top-1 of the last epoch", report.results)
        say(report.results.headline)
        say(f"report: {shlex.quote(str(report.page))}")


def _failure(record: Mapping[str, Any]) -> str:
    error = record.get("error", {})
    said = (str(error.get("message", "")).splitlines() or [""])[0]
    return f"  {record['label']}, seed {record['seed']}: {error.get('type', 'Error')}: {said}"


def _print_results(title: str, results: Results) -> None:
    """Print a row for each network: its accuracy, and what it gains over the plain one."""
    from csham.study.statistics import points  # noqa: PLC0415  imports scipy

    comparisons = {comparison.label: comparison for comparison in results.comparisons}
    rows = []
    for row in results.networks:
        mean = "" if row.top1 is None else f"{row.top1.mean:.2f}"
        deviation = "" if row.top1 is None or row.top1.sd is None else points(row.top1.sd)
        seeds = f"{row.n}/{len(results.seeds)}"
        rows.append([row.label, seeds, mean, deviation, *_compared(comparisons.get(row.label))])
    top1 = METRICS["top1"].with_unit(METRICS["top1"].title)
    print_table(title, ["network", "seeds", top1, "deviation", "difference", "95%", "verdict"], rows)


def _compared(comparison: Comparison | None) -> list[str]:
    from csham.study.statistics import with_sign  # noqa: PLC0415  imports scipy

    if comparison is None:
        return ["", "", ""]
    difference = "" if comparison.mean is None else with_sign(comparison.mean)
    interval = comparison.t_interval
    bounds = "" if interval is None else f"{with_sign(interval[0])} to {with_sign(interval[1])}"
    return [difference, bounds, comparison.verdict]
