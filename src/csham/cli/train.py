"""``csham train``: one run into one run folder, or on with one that was stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import csham.data
import csham.training
from csham.backbones.spec import CODE_FIELDS, CONNECTION_FIELDS, NetworkSpec
from csham.cli.common import code_words, metrics_table, print_json, time_limit, use_named_code
from csham.cli.options import (
    DATA_HELP,
    CodeOption,
    DebugOption,
    JsonOption,
    MinutesOption,
    QuietOption,
    option,
    takes_settings,
)
from csham.errors import UserError
from csham.settings import names_of
from csham.training.config import (
    DataSettings,
    MachineSettings,
    TrainConfig,
    TrainingSettings,
    check_trackers,
    read_settings,
    resolve,
)
from csham.training.course import with_more_epochs
from csham.training.interrupt import TIME_IS_OVER, InterruptedRunError, TimeIsOverError, TimeLimit, why_stopped
from csham.training.progress import QuietProgress, create_progress
from csham.training.run_folder import RunFolder, RunWeights
from csham.training.sums import is_main_process
from csham.words import path_word, say

__all__ = ["train"]

_ON_RESUME = names_of(MachineSettings)
_OF_MORE_EPOCHS = ("epochs", "schedule", "lr", "patience")
_RUN = "Run"


@takes_settings(NetworkSpec, TrainingSettings, DataSettings, MachineSettings)
def train(
    data: Annotated[str | None, typer.Argument(help=DATA_HELP, show_default=False)] = None,
    *,
    settings: dict[str, Any],
    run: Annotated[Path | None, option("The run folder.", _RUN, "named after the settings, in --runs-dir")] = None,
    runs_dir: Annotated[Path | None, option("Where run folders go.", _RUN, "runs")] = None,
    config: Annotated[Path | None, option("Settings from a file, such as a run's config.yaml.", _RUN, "none")] = None,
    resume: Annotated[Path | None, option("Go on with this run folder.", _RUN, "none")] = None,
    minutes: MinutesOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train one network into one run folder."""
    given = settings if data is None else {"data": data, **settings}
    use_named_code(code, [str(given.get("attention", ""))], [str(given.get("backbone", ""))])
    progress, limit = create_progress(quiet=quiet), time_limit(minutes)
    if resume is not None:
        places = {"run": run, "runs_dir": runs_dir, "config": config}
        given |= {name: value for name, value in places.items() if value is not None}
        folder, summary = RunFolder(resume), _resume(resume, given, progress, limit)
    else:
        folder, summary = _start(given, run, runs_dir or Path("runs"), config, progress, limit)
    if not is_main_process():
        return
    if as_json:
        print_json(summary)
        return
    chosen = summary["validation_chosen"]
    last, best = RunWeights("last", summary["epochs"]), RunWeights("best", chosen["epoch"])
    metrics_table(f"{folder.path}: test part", {str(last): summary, str(best): chosen})
    if "course" in summary:
        say(f"trained for {summary['course']}")
    if not quiet:
        say(*_what_is_there(folder, best), *_what_is_next(folder, summary))


def _what_is_there(folder: RunFolder, best: RunWeights) -> list[str]:
    """Say which files of a finished run hold what."""
    events = any(folder.path.glob("events.out.*"))
    logs = f"; tensorboard --logdir {path_word(folder.path)}" if events else ""
    return [
        f"in {folder.path}:",
        *_aligned(
            ("weights", f"model.safetensors, of the last epoch; checkpoints/best.ckpt, {best}"),
            ("results", "summary.json; by class confusion.csv"),
            ("each epoch", f"metrics.csv, curves.png{logs}"),
            ("settings", "config.yaml, environment.json"),
        ),
    ]


def _what_is_next(folder: RunFolder, summary: Mapping[str, Any]) -> list[str]:
    """Say by which commands a finished run is used."""
    run, code = path_word(folder.path), code_words([folder.read_config()])
    lines = _aligned(
        ("measure", f"csham evaluate {run}{code}"),
        ("ask", f"csham predict {run} IMAGES...{code}"),
        ("explain", f"csham explain {run} IMAGES...{code}"),
        ("try", f"csham app {run}{code}"),
        ("deploy", f"csham export {run}{code}"),
        ("train on", f"csham train --resume {run} --epochs {2 * summary['epochs']}{code}"),
    )
    if summary["validation_chosen"]["epoch"] == summary["epochs"]:
        return ["next:", *lines]
    return ["next, of the last epoch, or of the chosen one with --weights best:", *lines]


def _aligned(*pairs: tuple[str, str]) -> list[str]:
    width = max(len(name) for name, _ in pairs)
    return [f"  {name:{width}}  {words}" for name, words in pairs]


def _start(
    given: dict[str, Any],
    run: Path | None,
    runs_dir: Path,
    file: Path | None,
    progress: QuietProgress,
    limit: TimeLimit | None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Check everything that can be checked at once, then train."""
    read = read_settings(file) if file is not None else {}
    read = {name: value for name, value in read.items() if name not in CODE_FIELDS}  # of the code as it is now
    settings = resolve(given, read)
    settings.check_names()
    check_trackers(settings.trackers)
    of_attention = [name for name in (*CONNECTION_FIELDS, "attention_lr") if given.get(name)]
    idle = [f"--{name.replace('_', '-')}" for name in of_attention if settings.attention == "none"]
    if idle:
        raise UserError(
            f"{', '.join(idle)}: there is no attention to attach. Name one with --attention (csham list attentions), "
            f"or leave {'it' if len(idle) == 1 else 'them'} out."
        )
    folder = RunFolder(run if run is not None else runs_dir / settings.default_name())
    folder.check_free(settings.data)
    with _stoppable(folder, settings, limit):
        dataset = _open(settings, progress)
        return folder, csham.training.train(settings, run=folder.path, dataset=dataset, progress=progress, limit=limit)


def _open(settings: TrainConfig, progress: QuietProgress) -> Any:
    try:
        return csham.data.prepare(
            settings.data,
            image_size=settings.image_size,
            max_bad=settings.max_bad,
            progress=progress.preparing,
        )
    finally:
        progress.close()


def _resume(run: Path, given: dict[str, Any], progress: QuietProgress, limit: TimeLimit | None) -> dict[str, Any]:
    free = _ON_RESUME + (_OF_MORE_EPOCHS if "epochs" in given else ())
    data = given.pop("data", None)
    if fixed := [f"--{name.replace('_', '-')}" for name in given if name not in free]:
        raise UserError(f"--resume keeps the run's settings, leave out {', '.join(fixed)}.")
    folder = RunFolder(run)
    config = folder.read_config()
    check_trackers(given.get("trackers", config.trackers))
    if "epochs" in given:
        added = {name: given[name] for name in _OF_MORE_EPOCHS if name in given}
        with_more_epochs(folder, config, **added)  # before PyTorch is imported
    if not folder.finished and not (folder.last.is_file() or folder.best.is_file()):
        raise UserError(f"there is no checkpoint {folder.last}. Start the run again.")
    if "epochs" in given or not folder.finished:
        _check_writable(folder)
    with _stoppable(folder, config, limit):
        dataset = None if data is None else _open(replace(config, data=data), progress)
        return csham.training.resume(run, dataset=dataset, progress=progress, limit=limit, **given)


def _check_writable(folder: RunFolder) -> None:
    for place in filter(Path.exists, (folder.path, folder.last.parent)):
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"--resume {folder.path}: {place} is not writable. Copy the run, and go on with the copy.")


@contextmanager
def _stoppable(folder: RunFolder, config: TrainConfig, limit: TimeLimit | None) -> Iterator[None]:
    """Turn a run's being stopped into a sentence and an exit code."""
    again = f"csham train --resume {path_word(folder.path)}{code_words([config])}"
    if limit is not None:
        again += f" --minutes {limit.minutes:g}"
    try:
        with nullcontext() if limit is None else limit.enforced():
            yield
    except InterruptedRunError as err:
        say(f"{why_stopped(err.signum, limit)}, and saved. To go on: {again}", error=True)
        raise typer.Exit(128 + err.signum) from None
    except KeyboardInterrupt as err:
        signum = TIME_IS_OVER if isinstance(err, TimeIsOverError) else signal.SIGINT
        why = why_stopped(signum, limit)
        if folder.last.is_file():
            say(f"{why} at once. To go on from the last checkpoint: {again}", error=True)
        elif signum == TIME_IS_OVER:
            say(f"{why} before the run began. Give it more, by the same command.", error=True)
        raise typer.Exit(128 + signum) from None
