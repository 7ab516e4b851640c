"""Course of a run: the epochs that were planned together, an end before the last of them, and epochs added after it.

A run is one stretch of epochs, whose schedule is a function of their planned number. ``patience`` may end it early.
Going on with a finished run (``csham train --resume RUN --epochs N``) adds a stretch with a schedule of its own, as a
warm restart does (Loshchilov and Hutter, arXiv:1608.03983), and the setting ``continued`` says so:
``"after 12 of 30 epochs: one-cycle, lr 0.2"``. All of it follows from the settings and the history, so that a run that
is resumed, or trained again from its ``config.yaml``, takes the same course. Nothing here imports PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from csham.errors import UserError
from csham.words import counted

if TYPE_CHECKING:  # both import this
    from csham.training.config import TrainConfig
    from csham.training.run_folder import RunFolder

__all__ = [
    "before_continuing",
    "check_course",
    "check_patience",
    "is_continued",
    "is_over",
    "last_epoch",
    "schedule_notes",
    "settings_at",
    "stopped_early",
    "with_more_epochs",
    "words_on_course",
]

_ENTRY = re.compile(r"after (\d{1,9}) of (\d{1,9}) epochs: ([a-z-]+), lr ([0-9.e+-]+)(?:, patience (\d{1,9}))?")


@dataclass(frozen=True)
class _Addition:
    """Epochs that were added to a finished run.

    Attributes:
        done: Epochs before them.
        planned: Epochs that the run was to have before they were added.
        schedule: Course of the learning rate over them.
        lr: Highest learning rate.
        patience: Epochs without a better validation top-1 after which they end.
    """

    done: int
    planned: int
    schedule: str
    lr: float
    patience: int | None = None

    def __str__(self) -> str:
        patience = "" if self.patience is None else f", patience {self.patience}"
        return f"after {self.done} of {self.planned} epochs: {self.schedule}, lr {self.lr!r}{patience}"


def is_continued(entries: tuple[str, ...]) -> bool:
    """Return True if a value of the setting ``continued`` can be one."""
    try:
        added = [_read(entry) for entry in entries]
    except ValueError:
        return False
    in_order = all(one.done < other.done and one.done < other.planned for one, other in pairwise(added))
    return in_order and all(0 < one.done <= one.planned and 0 < one.lr < float("inf") for one in added)


def _read(entry: str) -> _Addition:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(entry)
    patience = None if match[5] is None else int(match[5])
    return _Addition(int(match[1]), int(match[2]), match[3], float(match[4]), patience)


def check_course(config: TrainConfig) -> None:
    """Refuse settings that contradict each other, which only a file can hold.

    Raises:
        UserError: ``epochs`` were added after the last one, or with a schedule that is none.
    """
    if not config.continued:
        return
    if _read(config.continued[-1]).done >= config.epochs:
        raise UserError(f"epochs is {config.epochs}, and continued has some added: {config.continued[-1]!r}.")
    _stretches(config)  # checks the schedules


@lru_cache(maxsize=8)
def _stretches(config: TrainConfig) -> tuple[tuple[int, TrainConfig], ...]:
    """Return for each stretch the epochs before it, and the settings with its own epochs and schedule."""
    if not config.continued:
        return ((0, config),)
    added = [_read(entry) for entry in config.continued]
    ends = [*(one.planned for one in added), config.epochs]
    first = replace(config, epochs=ends[0], continued=())
    more = [
        (one.done, replace(first, epochs=end - one.done, schedule=one.schedule, lr=one.lr, patience=one.patience))
        for one, end in zip(added, ends[1:], strict=True)
    ]
    return ((0, first), *more)


def settings_at(config: TrainConfig, epoch: int) -> tuple[int, TrainConfig]:
    """Return the stretch in which an epoch is: the epochs before it, and settings as of a run of its epochs alone.

    Args:
        config: The settings of the whole run.
        epoch: Epochs done.
    """
    return next(stretch for stretch in reversed(_stretches(config)) if stretch[0] <= epoch)


def is_over(config: TrainConfig, epoch: int, best: Mapping[str, Any]) -> bool:
    """Return True if no epoch follows.

    Args:
        config: The settings.
        epoch: Epochs done.
        best: ``epoch`` of the best validation top-1 so far; empty before the first.
    """
    return epoch >= config.epochs or stopped_early(config, epoch, best)


def stopped_early(config: TrainConfig, epoch: int, best: Mapping[str, Any]) -> bool:
    """Return True if ``patience`` has ended the run; that of epochs that were added counts from their first."""
    start, stretch = _stretches(config)[-1]
    if stretch.patience is None or not best or epoch >= config.epochs:
        return False
    return epoch - max(best["epoch"], start) >= stretch.patience


def last_epoch(config: TrainConfig, validation_top1: Sequence[float]) -> int:
    """Return the epoch after which a run of such a history is over, or whose number is the planned one."""
    best: dict[str, Any] = {}
    for epoch, value in enumerate(validation_top1, start=1):
        if not best or value > best["value"]:
            best = {"epoch": epoch, "value": value}
        if is_over(config, epoch, best):
            return epoch
    return config.epochs


def check_patience(config: TrainConfig, validation_images: int) -> None:
    """Refuse to stop by a validation part that is not there."""
    _, stretch = _stretches(config)[-1]
    if stretch.patience is not None and not validation_images:
        raise UserError(
            f"--patience {stretch.patience} stops by the validation part, and there is none. Hold one out with "
            "--validation 0.1, or leave --patience out."
        )


def schedule_notes(config: TrainConfig) -> list[str]:
    """Say where a schedule is cut off: by an early stop before it is down, or by the run's end before it is up."""
    before, stretch = _stretches(config)[-1]
    notes = []
    if stretch.schedule != "one-cycle" and stretch.warmup_epochs >= stretch.epochs:
        less = f"--warmup-epochs {max(1, stretch.epochs // 10) if stretch.epochs > 1 else 0.1} leaves"
        more = "More --epochs, or --schedule one-cycle, whose rise is a part of it, leave"  # what --resume takes
        notes.append(
            f"warning: the warm-up takes all of {counted(stretch.epochs, 'epoch')}: the learning rate only rises. "
            f"{more if before else less} time for the rest"
        )
    if stretch.patience is not None and stretch.schedule != "constant":
        plan = f"{stretch.schedule} is planned for all {counted(stretch.epochs, 'epoch')}"
        notes.append(f"--patience {stretch.patience} may stop before the learning rate is down: {plan}")
    return notes


def with_more_epochs(
    folder: RunFolder,
    config: TrainConfig,
    epochs: int,
    schedule: str | None = None,
    lr: float | None = None,
    patience: int | None = None,
) -> TrainConfig:
    """Return the settings of a run all of whose epochs are done, with more of them.

    Args:
        folder: The run.
        config: Its settings so far.
        epochs: Of all together.
        schedule: Course of the learning rate over the added epochs; None begins the run's own again.
        lr: Highest learning rate of them; None takes the run's own.
        patience: Epochs without a better validation top-1 after which they end; None trains all.

    Raises:
        UserError: It has as many, is not over yet, or is a cell of a study.
    """
    if config.continued and config.epochs == epochs and _same_again(config, schedule, lr, patience):
        return config
    _check_no_cell(folder)
    history = folder.read_metrics() if (folder.path / "metrics.csv").is_file() else []
    done, values = len(history), [row.get("val_top1") for row in history]
    if done < last_epoch(config, [value for value in values if value is not None]):
        raise UserError(
            f"{folder.path} is in epoch {done + 1} of {config.epochs}. Let it end first: csham train --resume "
            f"{folder.path} without --epochs."
        )
    if epochs <= done:
        are, them = ("is", "it") if done == 1 else ("are", "them")
        raise UserError(
            f"--resume keeps the run's settings, leave out --epochs: {counted(done, 'epoch')} {are} done, and only a "
            f"larger number adds to {them}."
        )
    schedule, lr = schedule or config.schedule, config.lr if lr is None else lr
    checked = replace(config, schedule=schedule, lr=lr, patience=patience)
    added = _Addition(done, config.epochs, checked.schedule, checked.lr, patience)
    return replace(config, epochs=epochs, continued=(*config.continued, str(added)))


def _same_again(config: TrainConfig, schedule: str | None, lr: float | None, patience: int | None) -> bool:
    last = _read(config.continued[-1])
    return schedule in (None, last.schedule) and lr in (None, last.lr) and patience in (None, last.patience)


def _check_no_cell(folder: RunFolder) -> None:
    place = folder.path.resolve().parent
    if place.name == "runs" and (place.parent / "study.yaml").is_file():
        raise UserError(
            f"{folder.path} is a run of the study {place.parent}, all of whose runs have as many epochs. Copy it to "
            "another place to go on with it, or begin a study of more epochs: csham compare --study OTHER."
        )


def before_continuing(config: TrainConfig) -> list[dict[str, Any]]:
    """Return ``epochs`` and ``continued`` as they were before each time that epochs were added, and as they are.

    A checkpoint may be of any of these.
    """
    entries, ends = config.continued, [*(_read(entry).planned for entry in config.continued), config.epochs]
    return [{"epochs": end, "continued": list(entries[:count])} for count, end in enumerate(ends)]


def words_on_course(config: TrainConfig, done: int) -> str:
    """Say which epochs were trained: ``12 of 30 epochs, then 8 more (one-cycle, highest rate 0.2)``."""
    added = [_read(entry) for entry in config.continued]
    starts, ends = [0, *(one.done for one in added)], [*(one.planned for one in added), config.epochs]
    said = []
    for place, (start, planned, end) in enumerate(zip(starts, ends, [*starts[1:], done], strict=True)):
        count, of = end - start, planned - start
        number = f"{count} of {counted(of, 'epoch')}" if count != of else counted(of, "epoch")
        if not place:
            said.append(number)
            continue
        number = f"{count} of {of}" if count != of else f"{of}"
        one = added[place - 1]
        patience = "" if one.patience is None else f", patience {one.patience}"
        said.append(f"then {number} more ({one.schedule}, highest rate {one.lr:g}{patience})")
    return ", ".join(said)
