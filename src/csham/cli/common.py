"""Options that have one name everywhere, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from csham.errors import UserError
from csham.training.run_folder import RunFolder
from csham.training.run_weights import DEFAULT, check_choice

__all__ = [
    "DebugOption",
    "DeviceOption",
    "JsonOption",
    "QuietOption",
    "TrainedArgument",
    "WeightsOption",
    "check_report_packages",
    "check_trained",
    "metrics_table",
    "print_json",
    "print_markdown",
    "print_table",
    "split_list",
    "split_numbers",
]

OUTPUT = "Output"
MACHINE = "Machine"

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT)]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="what the machine has", rich_help_panel=MACHINE),
]

TrainedArgument = Annotated[
    Path,
    typer.Argument(
        help="A run folder, one that csham share wrote, a file model.safetensors, or hf:user/name.", show_default=False
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="last: of the last epoch; best: chosen by the validation part.",
        show_default=f"{DEFAULT}, or what a file or a shared folder holds",
    ),
]


def check_trained(path: Path, weights: str | None) -> None:
    """Refuse, before torch is imported, what :func:`csham.load` would refuse after.

    Raises:
        UserError: Nothing is there, or there are no such weights.
    """
    check_choice(weights)
    if not str(path).startswith("hf:") and not path.exists():
        RunFolder(path).check_run()


def check_report_packages() -> None:
    """Refuse to begin what could not end with a report.

    Raises:
        UserError: A package of the extra ``csham[report]`` is not installed.
    """
    missing = [name for name in ("jinja2", "matplotlib", "openpyxl", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(f'the report of a study needs {", ".join(missing)}. Install them: pip install "csham[report]".')


def split_list(text: str) -> list[str]:
    """Take an option's value apart at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def split_numbers(option: str, text: str) -> list[int]:
    """Take an option's value apart into whole numbers."""
    try:
        return [int(word) for word in split_list(text)]
    except ValueError:
        raise UserError(f"{option} takes whole numbers with commas between them, got {text!r}.") from None


def print_json(content: Any) -> None:
    """Print a result on standard output for another program."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    print()


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output; numbers are set to the right."""
    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        numeric = all(_is_number(row[number]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, width=width).print(table)


def print_markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output as Markdown, for a page; numbers are set to the right."""
    rows = [list(row) for row in rows]
    numeric = [all(_is_number(row[number]) for row in rows) for number in range(len(header))]
    cells = [list(header), ["---:" if right else "---" for right in numeric], *([*map(_cell, row)] for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    print("\n".join(([f"### {title}", ""] if title else []) + lines), end="\n\n")


def metrics_table(title: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of one or more sets of weights, a row each."""
    names = ("top1", "macro_top1", "top5", "precision", "recall", "f1", "kappa", "loss", "images")
    header = ["", "top-1", "macro top-1", "top-5", "precision", "recall", "F1", "kappa", "loss", "images"]
    # A run that finished before macro_top1 was reported is still shown.
    print_table(title, header, ([name, *(values.get(key) for key in names)] for name, values in measured.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
