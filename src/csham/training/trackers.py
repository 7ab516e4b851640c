"""Trackers: where a run's numbers go besides its folder. TensorBoard's events, and W&B and MLflow through Accelerate.

Nothing depends on a tracker: one that fails, at its start or later, is left out from there on, in one sentence, and
gets the epochs that it lacks when the run is resumed. TensorBoard's events are not written by Accelerate, whose writer
takes no epochs back that a killed process had written, and prints a traceback where the disk is full.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Protocol

import filelock

from csham.errors import first_line_of
from csham.files import cache_root
from csham.training.metrics import METRICS
from csham.training.progress import QuietProgress
from csham.training.session import Session, State
from csham.training.tensorboard import EventWriter, curves
from csham.words import path_word

__all__ = ["Trackers"]

_LOG = logging.getLogger(__name__)

# Of an address, as https://name:password@server.
_CREDENTIALS = re.compile(r"//[^/@\s]+@")

_PROJECT = "csham"
_FILE = "trackers.json"
_LONGEST_START = 300  # seconds

# A server that does not answer stops neither an epoch nor the end of a run for long.
_PATIENCE = {
    "WANDB_FINISH_TIMEOUT": "120",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

# W&B would also send the command line, the paths of program and folder, the host and the user, and git's remote.
_PRIVATE = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}


class _Tracker(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any] | None) -> None: ...


class Trackers:
    """All trackers of a run, in the process that writes; others have none.

    Args:
        session: Session of the run.
        state: State that it begins or goes on with.
    """

    def __init__(self, session: Session, state: State) -> None:
        self._session = session
        self._open: dict[str, _Tracker] = {}
        if session.is_main:
            for name in session.config.trackers:
                self._try(name, partial(self._start, name, state))

    def write(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.csv."""
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.write, row))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close everything.

        Args:
            summary: The final numbers, if the run came to its end.
        """
        trackers, self._open = self._open, {}
        for name, tracker in trackers.items():
            self._try(name, partial(tracker.finish, summary))

    def _start(self, name: str, state: State) -> None:
        if name == "none":
            return
        if name == "tensorboard":
            self._open[name] = EventWriter(self._session.folder.path, state.epoch)
            return
        self._open[name] = service = _Service(name, self._session)
        service.catch_up(state.history)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as err:  # whatever the library of a tracker raises
            if (tracker := self._open.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.finish(None)  # or the next run of this process would go on in its record
            said = _CREDENTIALS.sub("//", first_line_of(err))[:200]
            where = self._session.folder.path / "metrics.csv"
            self._say(f"{name} failed ({said}) and is left out from here on; the numbers are in {where}")

    def _say(self, text: str) -> None:
        if type(self._session.progress) is QuietProgress:
            _LOG.warning(text)  # this is no progress
        self._session.note(text)


class _Service:
    """W&B's or MLflow's record of the run, the same one when the run goes on."""

    def __init__(self, name: str, session: Session) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        self._name, self._session = name, session
        known = _known(session).get(name)
        try:
            self._tracker = _started(name, session, known)
        except Exception:
            if known is None:
                raise
            self._tracker = _started(name, session, None)  # the one from before is on another server, or deleted

    def catch_up(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Remember the record, and log the epochs that it lacks."""
        run, known = self._tracker.tracker, _known(self._session)
        number = run.id if self._name == "wandb" else run.info.run_id
        if number != known.get(self._name):
            self._session.folder.write_json(_FILE, known | {self._name: number})
        last = run.step - 1 if self._name == "wandb" else _last_step_of_mlflow(number)
        for row in history:
            if row["epoch"] > last:
                self.write(row)
        self._session.note(_where(self._name, run))

    def write(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.csv."""
        self._tracker.log(curves(row), step=row["epoch"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Log the final numbers, and say that nothing more comes."""
        if summary is not None:
            final = {f"final/test_{name}": summary[name] for name in METRICS if name in summary}
            self._tracker.log(final, step=summary["epochs"])
        self._tracker.finish()


def _known(session: Session) -> dict[str, str]:
    """Return what the trackers called this run when it was begun."""
    there = (session.folder.path / _FILE).is_file()
    return session.folder.read_json(_FILE) if there else {}


def _started(name: str, session: Session, number: str | None) -> Any:
    """Let Accelerate start one of its trackers.

    Args:
        name: Its name.
        session: Session of the run.
        number: What it called the run before; None begins another.
    """
    accelerator, run_name = session.accelerator, session.folder.path.absolute().name
    started = {
        "wandb": {
            "id": number or uuid.uuid4().hex[:8],
            "resume": "allow",
            "name": run_name,
            "dir": os.environ.get("WANDB_DIR", str(session.folder.path)),
            "settings": _PRIVATE,
        },
        "mlflow": {"run_id": number, "run_name": run_name, "tags": {"mlflow.source.name": "csham train"}},
    }
    # MLflow takes a setting once, so that epochs that were added would be refused.
    settings = _settings(session) if name == "wandb" or number is None else None
    accelerator.log_with, accelerator.trackers = [name], []
    project = os.environ.get("WANDB_PROJECT", _PROJECT) if name == "wandb" else _PROJECT
    try:
        # MLflow makes the tables of its store when it is first used, and cannot be at it twice.
        with filelock.FileLock(cache_root() / "trackers.lock", timeout=_LONGEST_START):
            accelerator.init_trackers(project, settings, started)
    except Exception:
        for tracker in accelerator.trackers:
            with suppress(Exception):
                tracker.finish()
        raise
    return accelerator.trackers.pop()


def _settings(session: Session) -> dict[str, Any]:
    """Return the settings without the places of files."""
    values = {name: value for name, value in session.config.to_dict().items() if value is not None}
    return values | {name: PurePath(values[name]).name for name in ("data", "weights_file") if name in values}


def _last_step_of_mlflow(number: str) -> int:
    from mlflow import MlflowClient  # noqa: PLC0415  an extra

    return max((point.step for point in MlflowClient().get_metric_history(number, "run/seconds")), default=0)


def _where(name: str, run: Any) -> str:
    if name == "mlflow":
        return f"mlflow has this run as {run.info.run_name}"
    if run.offline:
        return f"wandb is offline: wandb sync {path_word(Path(run.dir).parent)} sends what it keeps there"
    return f"wandb has this run at {run.url}"
