"""The command line as a whole: its commands, and what becomes of their exceptions."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from csham._version import __version__
from csham.cli import import_failure
from csham.cli.app import app_page
from csham.cli.common import COMMAND_STARTED
from csham.cli.compare import compare
from csham.cli.doctor import doctor
from csham.cli.evaluate import evaluate
from csham.cli.explain import explain
from csham.cli.export import export
from csham.cli.gates import gates
from csham.cli.list import list_names
from csham.cli.predict import predict
from csham.cli.prepare import prepare
from csham.cli.profile import profile
from csham.cli.report import report
from csham.cli.share import share
from csham.cli.train import train
from csham.cli.verdict import verdict
from csham.errors import UserError
from csham.files import cache_root
from csham.training.interrupt import STOP_SIGNALS, TIME_IS_OVER, TimeIsOverError
from csham.words import printable, say

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """The commands; a word that one of them cannot take, perhaps a file's name, is written out where it is shown."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read the words before the command's name."""
        with _printable_usage():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's words, and run it."""
        with _printable_usage():
            return super().invoke(ctx)


@contextmanager
def _printable_usage() -> Iterator[None]:
    try:
        yield
    except Exception as err:
        if hasattr(err, "format_message"):  # click's errors, which newer typers have a copy of
            for name, value in vars(err).items():
                setattr(err, name, printable(value) if isinstance(value, str) else value)
        raise


app = typer.Typer(
    name="csham",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # main() says what went wrong
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_names)
app.command("prepare")(prepare)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("report")(report)
app.command("verdict")(verdict)
app.command("profile")(profile)
app.command("predict")(predict)
app.command("explain")(explain)
app.command("gates")(gates)
app.command("app")(app_page)
app.command("export")(export)
app.command("share")(share)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def _csham(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Channel-spatial attention for convolutional networks: train, measure, compare, use."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``csham``; None takes the process's own.

    Returns:
        The exit code.
    """
    _make_printable()
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is not None:
        COMMAND_STARTED.set(time.monotonic())
    else:
        _set_environment()
    try:
        _check_working_folder()
        with _cleaning_up_on_signals(), _warnings_as_notes(debug="--debug" in words):
            _click_command()(args=words, prog_name="csham", obj=words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except TimeIsOverError:
        return 128 + TIME_IS_OVER
    except KeyboardInterrupt:
        return 130
    except Exception as err:
        return _explain(err, debug="--debug" in words)
    return 0


def _set_environment() -> None:
    """Choose for libraries, and for the processes that they start, what the user has not."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # joblib's would import what lies in the working folder
    chosen = os.environ.get("MPLCONFIGDIR") or os.environ.get("XDG_CONFIG_HOME")
    if not chosen and not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111  if any
        with suppress(OSError):
            os.environ["MPLCONFIGDIR"] = str(cache_root() / "matplotlib")  # which matplotlib makes


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except OSError as err:
        raise UserError("the working folder was deleted, or cannot be read. cd into another.") from err


def _make_printable() -> None:
    """Let nothing that is printed fail, where a stream was closed (``>&-``) or has an encoding of few signs."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for all that follows
        elif isinstance(stream, io.TextIOWrapper) and _fails(stream):
            stream.reconfigure(errors="backslashreplace")


def _fails(stream: io.TextIOWrapper) -> bool:
    """Return True for a stream that refuses signs: in the C locale it lets pass what file names have, and no other."""
    utf8 = stream.encoding.lower().replace("-", "") == "utf8"
    return stream.errors == "strict" or (stream.errors == "surrogateescape" and not utf8)


@functools.cache
def _click_command() -> Any:
    """All commands as click has them; typer would make them anew at each call, from a thousand annotations."""
    return typer.main.get_command(app)


class _Notes(logging.Handler):
    """Prints what is logged as what is said besides, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        say(f"note: {' '.join(record.getMessage().split())}", error=True)


@contextmanager
def _warnings_as_notes(*, debug: bool) -> Iterator[None]:
    """Print warnings, and what is logged and nothing else shows, without the place in the code unless ``debug``."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        place = f"{filename}:{lineno}: {category.__name__}: " if debug else ""
        say(f"note: {place}{' '.join(str(message).split())}", error=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # on odd metadata: the pixels are what counts
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # for developers
        warnings.showwarning = show
        before, logging.lastResort = logging.lastResort, _Notes(logging.WARNING)
        try:
            yield
        finally:
            logging.lastResort = before


@contextmanager
def _cleaning_up_on_signals() -> Iterator[None]:
    """Let others end a command as Ctrl-C does, so that half-written files go; by themselves they end it at once."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers nowhere else
        yield
        return
    others = [signum for signum in STOP_SIGNALS if signum != signal.SIGINT]
    before = {signum: signal.signal(signum, lambda signum, _: sys.exit(128 + signum)) for signum in others}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _explain(err: Exception, *, debug: bool) -> int:
    """Say what went wrong on standard error, and choose the exit code."""
    if debug:
        say(*"".join(traceback.format_exception(err)).splitlines(), error=True)
    if isinstance(err, UserError):
        message, code = str(err), 2
    elif isinstance(err, ImportError) and (failure := import_failure("this command", err)):
        message, code = failure, 2
    elif isinstance(err, OSError) and (err.filename or err.errno):
        message, code = _system_error(err), 2
    else:
        hint = "" if debug else " --debug shows the traceback."
        message, code = f"{type(err).__name__}: {err}.{hint} This is a fault of csham, please report it.", 1
    first, *below = message.split("\n") if isinstance(err, UserError) else [message]
    say(f"error: {first}", *below, error=True)
    return code


def _system_error(err: OSError) -> str:
    # Of an open file the system says no more; a failing network says itself what failed.
    of_open_files = "standard output or another open file: " if err.errno in _OF_OPEN_FILES else ""
    where = f"{err.filename}: " if err.filename else of_open_files
    return f"{where}{err.strerror or err}."


_OF_OPEN_FILES = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)
