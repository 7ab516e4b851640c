"""``csham train``: one run into one run folder, or on with one that was stopped."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

import csham.data
import csham.training
from csham.cli.common import (
    MACHINE,
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    metrics_table,
    print_json,
    split_list,
    split_numbers,
)
from csham.data.names import CROP_SCALE
from csham.errors import UserError
from csham.training.config import TrainConfig, read_settings, resolve
from csham.training.interrupt import InterruptedRunError
from csham.training.progress import QuietProgress, create_progress
from csham.training.run_folder import RunFolder, is_main_process

__all__ = ["train"]

_NETWORK, _TRAINING, _DATA, _RUN = "Network", "Training", "Data", "Run"
_RECIPE = "from the recipe"
_ON_RESUME = {"device", "precision", "compile", "channels_last", "checkpoint_seconds", "checkpoint_steps"}


def _option(help: str, panel: str, default: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default)


def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(help="A dataset (csham list datasets) or an image folder.", show_default=False),
    ] = None,
    *,
    backbone: Annotated[
        str | None, _option("csham list backbones, or any of timm's or torchvision's.", _NETWORK, "resnet18")
    ] = None,
    attention: Annotated[str | None, _option("csham list attentions.", _NETWORK, "none")] = None,
    strategy: Annotated[str | None, _option("csham list strategies.", _NETWORK, "sequential")] = None,
    period: Annotated[int | None, _option("Of transfer: points to each channel step.", _NETWORK, "2")] = None,
    position: Annotated[str | None, _option("csham list positions.", _NETWORK, "auto")] = None,
    points: Annotated[
        str | None, _option("Instead of a position: modules' names or patterns, with commas.", _NETWORK, "none")
    ] = None,
    stages: Annotated[str | None, _option("Only these stages: 0,1,... or from the last: -1.", _NETWORK, "all")] = None,
    gated: Annotated[
        bool | None, _option("Start attention as the identity.", _NETWORK, "no-gated", "--gated/--no-gated")
    ] = None,
    pretrained: Annotated[
        bool | None,
        _option("Start from published weights.", _NETWORK, "no-pretrained", "--pretrained/--no-pretrained"),
    ] = None,
    weights_file: Annotated[
        str | None, _option("Start from the backbone's weights in this local file.", _NETWORK, "none")
    ] = None,
    recipe: Annotated[str | None, _option("quick, fast or paper.", _TRAINING, "fast")] = None,
    epochs: Annotated[int | None, _option("Passes over the training images.", _TRAINING, _RECIPE)] = None,
    batch_size: Annotated[int | None, _option("Images per step, over all devices.", _TRAINING, _RECIPE)] = None,
    lr: Annotated[float | None, _option("Highest learning rate.", _TRAINING, _RECIPE)] = None,
    weight_decay: Annotated[float | None, _option("Weight decay.", _TRAINING, _RECIPE)] = None,
    label_smoothing: Annotated[float | None, _option("Of the training loss.", _TRAINING, "0")] = None,
    seed: Annotated[int | None, _option("Of weights, split, order and crops.", _TRAINING, "0")] = None,
    track_test: Annotated[
        bool | None,
        _option(
            "Measure the test part after every epoch; nothing is chosen by it.",
            _TRAINING,
            "no-track-test",
            "--track-test/--no-track-test",
        ),
    ] = None,
    image_size: Annotated[int | None, _option("Height and width in pixels.", _DATA, "the dataset's own")] = None,
    crop: Annotated[
        str | None, _option("pad (a shifted square) or resized (a random box).", _DATA, "pad up to 64 px, then resized")
    ] = None,
    crop_scale: Annotated[
        float | None, _option("Least area of a resized crop, above 0 to 1.", _DATA, str(CROP_SCALE))
    ] = None,
    validation: Annotated[float | None, _option("Fraction of the training images held out.", _DATA, "0.1")] = None,
    max_bad: Annotated[int | None, _option("Unreadable files to skip before giving up.", _DATA, "10")] = None,
    run: Annotated[Path | None, _option("The run folder.", _RUN, "named after the settings, in --runs-dir")] = None,
    runs_dir: Annotated[Path | None, _option("Where run folders go.", _RUN, "runs")] = None,
    config: Annotated[Path | None, _option("Settings from a file, such as a run's config.yaml.", _RUN, "none")] = None,
    resume: Annotated[Path | None, _option("Go on with this run folder.", _RUN, "none")] = None,
    checkpoint_seconds: Annotated[float | None, _option("Most seconds between two checkpoints.", _RUN, "60")] = None,
    checkpoint_steps: Annotated[
        int | None, _option("Most steps between two checkpoints.", _RUN, "by time alone")
    ] = None,
    device: DeviceOption = None,
    precision: Annotated[
        str | None, _option("auto, fp32, bf16 or fp16.", MACHINE, "what the machine does fast")
    ] = None,
    compile: Annotated[
        bool | None, _option("Use torch.compile.", MACHINE, "where it pays", "--compile/--no-compile")
    ] = None,
    channels_last: Annotated[
        bool | None,
        _option("Channels innermost in memory.", MACHINE, "on CPU and CUDA", "--channels-last/--no-channels-last"),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train one network into one run folder."""
    names = {field.name for field in fields(TrainConfig)}
    given = {name: value for name, value in ctx.params.items() if name in names and value is not None}
    if points is not None:
        given["points"] = split_list(points)
    if stages is not None:
        given["stages"] = split_numbers("--stages", stages)
    progress = create_progress(quiet=quiet)
    if resume is not None:
        places = {"run": run, "runs_dir": runs_dir, "config": config}
        given |= {name: value for name, value in places.items() if value is not None}
        folder, summary = RunFolder(resume), _resume(resume, given, progress)
    else:
        folder, summary = _start(given, run, runs_dir or Path("runs"), config, progress)
    if not is_main_process():
        return
    if as_json:
        print_json(summary)
        return
    chosen = summary["validation_chosen"]
    rows = {"last epoch": summary, f"chosen (epoch {chosen['epoch']})": chosen}
    metrics_table(f"{folder.path}: test part", rows)


def _start(
    given: dict[str, Any], run: Path | None, runs_dir: Path, file: Path | None, progress: QuietProgress
) -> tuple[RunFolder, dict[str, Any]]:
    """Check everything that can be checked at once, then train."""
    settings = resolve(given, read_settings(file) if file is not None else None)
    settings.check_names()
    folder = RunFolder(run if run is not None else runs_dir / settings.default_name())
    folder.check_free()
    dataset = _open(settings, progress)
    with _Stoppable(folder):
        return folder, csham.training.train(settings, run=folder.path, dataset=dataset, progress=progress)


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


def _resume(run: Path, given: dict[str, Any], progress: QuietProgress) -> dict[str, Any]:
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in _ON_RESUME]
    if fixed:
        what = ", ".join(name if name != "--data" else "DATA" for name in fixed)
        raise UserError(f"--resume keeps the run's settings, leave out {what}.")
    folder = RunFolder(run)
    folder.read_config()
    if not folder.finished and not folder.last.is_file():
        raise UserError(f"there is no checkpoint {folder.last}. Start the run again.")
    with _Stoppable(folder):
        return csham.training.resume(run, progress=progress, **given)


class _Stoppable:
    """Turns a run's being stopped into a sentence and an exit code."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InterruptedRunError):
            typer.echo(f"stopped, and saved. To go on: csham train --resume {error.run}", err=True)
            raise typer.Exit(128 + error.signum) from None
        if isinstance(error, KeyboardInterrupt):
            if self._folder.last.is_file():
                how = f"csham train --resume {self._folder.path}"
                typer.echo(f"stopped at once. To go on from the last checkpoint: {how}", err=True)
            raise typer.Exit(130) from None
