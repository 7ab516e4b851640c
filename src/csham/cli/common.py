"""Checks that commands share, and how results are printed."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from csham.backbones.names import BACKBONES
from csham.backbones.own import use_code
from csham.backbones.spec import NetworkSpec
from csham.backbones.zoo import is_in_zoo, zoo_folder
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import is_own_attention
from csham.own_code import is_reference
from csham.training.interrupt import TimeLimit
from csham.training.metrics import in_tables
from csham.training.run_folder import RunFolder, check_choice
from csham.words import printable, say

__all__ = [
    "COMMAND_STARTED",
    "check_counts",
    "check_report_packages",
    "check_seed",
    "check_stdin",
    "check_trained",
    "code_words",
    "metrics_table",
    "print_json",
    "print_markdown",
    "print_note",
    "print_table",
    "time_limit",
    "use_named_code",
]


def _age_of_process() -> float:
    """Return the seconds since this process began, where the system says so."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


COMMAND_STARTED: ContextVar[float] = ContextVar("command started")
COMMAND_STARTED.set(time.monotonic() - _age_of_process())
"""Time at which the command began: of a process that is one command, its own beginning."""


def time_limit(minutes: float | None) -> TimeLimit | None:
    """Return the limit of ``--minutes``, which counts from the command's start."""
    return None if minutes is None else TimeLimit(minutes, COMMAND_STARTED.get())


def check_counts(**counts: int | None) -> None:
    """Refuse options that count something, by their names, and are below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


def check_seed(seed: int) -> None:
    """Refuse a ``--seed`` that generators of random numbers do not take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be from 0 to below 2**63, got {seed}.")


def check_stdin(names: Sequence[str]) -> None:
    """Refuse ``-`` among names of images where standard input was closed (``<&-``)."""
    if "-" in names and sys.stdin is None:
        raise UserError("- reads the names of images from standard input, which is closed. Give it a list: - < LIST")


def use_named_code(code: Sequence[str] | None, attentions: Iterable[str] = (), backbones: Iterable[str] = ()) -> None:
    """Import the code that this call names.

    Args:
        code: Values of ``--code``.
        attentions: Names of ``--attention``, of which ``my_module:MyGate`` and ``my_module:MyGate:transfer`` are code.
        backbones: Names of ``--backbone``, of which ``my_module:make_net`` is code.
    """
    for reference in code or ():
        use_code(reference)
    for words in attentions:
        reference = ":".join(words.split(":")[:2])
        if is_own_attention(words) and reference not in ATTENTIONS:
            use_code(reference, kind="attention")
    for name in backbones:
        if (is_reference(name) or ".py:" in name) and name not in BACKBONES:
            use_code(name, kind="backbone")


def code_words(networks: Iterable[NetworkSpec]) -> str:
    """Return the words that allow the user's own in these in another call, with a space in front."""
    codes = dict.fromkeys(code for network in networks for code in network.codes.values())
    return "".join(f" --code {shlex.quote(code.reference)}" for code in codes)


def check_trained(path: Path, weights: str | None) -> None:
    """Refuse, before torch is imported, what :func:`csham.load` would refuse after.

    Raises:
        UserError: Nothing is there, or there are no such weights.
    """
    check_choice(weights)
    if is_in_zoo(path):
        zoo_folder(path)
    elif not str(path).startswith("hf:") and not path.exists():
        RunFolder(path).check_run()


def check_report_packages() -> None:
    """Refuse what cannot be done without them.

    Raises:
        UserError: A package of the extra ``csham[report]`` is not installed.
    """
    missing = [name for name in ("jinja2", "matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(f'the report of a study needs {", ".join(missing)}. Install them: pip install "csham[report]".')


def print_json(content: Any) -> None:
    """Print a result on standard output for another program, in ASCII, which every encoding has."""
    say(*json.dumps(content, indent=2).split("\n"))


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], *, stack: bool = False, turn: bool = False
) -> None:
    """Print a table on standard output; numbers are set to the right.

    Args:
        title: Put above it.
        header: Names of the columns.
        rows: As many values as names.
        stack: Put what follows a row's first value below each other, where the table is wider than the terminal.
        turn: Make columns of its rows there.
    """
    header, rows = [*map(printable, header)], [list(row) for row in rows]
    table, console = _upright(title, header, rows), _console()
    unsqueezed = console.options.update(max_width=_UNBOUND)
    if (stack or turn) and console.measure(table, options=unsqueezed).maximum > console.width:
        table = _stacked(title, header, rows, console.width) if stack else _turned(title, header, rows)
    console.print(table)


def print_note(*lines: str) -> None:
    """Print what is to be known of a table, in lines as wide as the table may be."""
    _console().print("\n".join(map(printable, lines)))


def print_markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output as Markdown, for a page; numbers are set to the right."""
    rows = [list(row) for row in rows]
    numeric = [all(_is_number(row[number]) for row in rows) for number in range(len(header))]
    cells = [list(header), ["---:" if right else "---" for right in numeric], *([*map(_cell, row)] for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    say(*([f"### {title}", ""] if title else []), *lines, "")


def metrics_table(title: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of one or more sets of weights, a row each."""
    # Few classes have no top-5 accuracy, and older runs lack what is measured since.
    known = [metric for metric in in_tables() if any(metric.name in values for values in measured.values())]
    rows = ([row, *(values.get(metric.name) for metric in known)] for row, values in measured.items())
    print_table(title, ["", *(metric.title for metric in known)], rows, turn=True)


_UNBOUND = 10_000


def _console() -> Console:
    # A line may be as long as it is where there is no terminal and COLUMNS does not say how long.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _UNBOUND
    return Console(highlight=False, markup=False, emoji=False, width=width)


def _table(title: str) -> Table:
    return Table(title=printable(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _upright(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = _table(title)
    for number, name in enumerate(header):
        numeric = all(_is_number(row[number]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _turned(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Build a table whose columns are the rows."""
    first, *others = map(list, zip(header, *rows, strict=True))
    return _upright(title, [*map(printable, first)], others)


def _stacked(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> Table:
    """Build a table of two columns: the first values, and the others below each other with their names."""
    table = _table(title)
    whole = 3 * max((len(_cell(row[0])) for row in rows), default=0) < 2 * width  # else nothing is left for the second
    table.add_column(header[0], no_wrap=whole, overflow="fold")
    table.add_column(header[1], overflow="fold")
    for first, second, *others in rows:
        named = [f"{name}: {_cell(value)}" for name, value in zip(header[2:], others, strict=True) if _cell(value)]
        table.add_row(_cell(first), "\n".join([_cell(second), "; ".join(named)]))
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return printable(", ".join(value))
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else printable(value)
