"""Tables, the numbers in them as they are read, and the files they become.

CSV and XLSX have every digit, Markdown and LaTeX what is read. Names in them are third-party text: no cell becomes a
formula, a tag or a command.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csham.files import csv_text, write_atomically

__all__ = [
    "DASH",
    "Cell",
    "Column",
    "Table",
    "csv_bytes",
    "fixed",
    "interval",
    "latex_bytes",
    "markdown_bytes",
    "markdown_text",
    "p_value",
    "plus_minus",
    "signed",
    "thousands",
    "write_csv",
    "xlsx_bytes",
]

Value = str | int | float | bool | None

DASH = "\N{EN DASH}"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Column:
    """One column: what it has of each row, for readers, for programs, or for both.

    Attributes:
        title: Its head for readers; empty: they do not see it.
        value: Finds the value in a row, several where there are several keys; readers sort by the first.
        form: Writes the value, where there is one.
        keys: Its heads for programs; none: they do not see it.
        show: Writes the row instead of ``form``.
        mark: Finds a class of the style sheet for the cell.
        numeric: Set to the right, and sorted by number.
        help: Meaning of the column in a few words.
    """

    title: str
    value: Callable[[Any], Any]
    form: Callable[[Any], str] = str
    keys: tuple[str, ...] = ()
    show: Callable[[Any], str] | None = None
    mark: Callable[[Any], str] = lambda row: ""
    numeric: bool = True
    help: str = ""

    def values(self, row: Any) -> Sequence[Value]:
        """Return the values of a row, with every digit."""
        value = self.value(row)
        if len(self.keys) < 2:
            return (value,)
        return (None,) * len(self.keys) if value is None else value

    def cell(self, row: Any) -> Cell:
        """Return a row's cell as it is read."""
        value = self.value(row)
        text = self.show(row) if self.show else DASH if value is None else self.form(value)
        return Cell(text, self.values(row)[0], self.mark(row))


@dataclass(frozen=True)
class Cell:
    """One cell as it is read.

    Attributes:
        text: Text shown.
        value: Value by which the column is sorted; None goes last.
        mark: A class of the style sheet.
    """

    text: str
    value: Value
    mark: str


@dataclass(frozen=True)
class Table:
    """A table, for readers and for programs.

    Attributes:
        name: Stem of its files.
        caption: Summary of what it shows.
        columns: All of them; readers and programs see theirs in this order.
        items: A row each, as the columns know it.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    items: Sequence[Any]

    @cached_property
    def shown(self) -> list[Column]:
        """The columns for readers."""
        return [column for column in self.columns if column.title]

    @cached_property
    def rows(self) -> list[list[Cell]]:
        """The rows for readers."""
        return [[column.cell(item) for column in self.shown] for item in self.items]

    @cached_property
    def keys(self) -> list[str]:
        """The heads for programs."""
        return list(dict.fromkeys(key for column in self.columns for key in column.keys))

    @cached_property
    def raw(self) -> list[list[Value]]:
        """The rows for programs."""
        return [self._raw(item) for item in self.items]

    def _raw(self, item: Any) -> list[Value]:
        pairs = [pair for one in self.columns if one.keys for pair in zip(one.keys, one.values(item), strict=True)]
        return list(dict(pairs).values())


def csv_bytes(table: Table) -> bytes:
    """Return the raw rows as CSV; texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.keys)
    writer.writerows([_harmless(value) for value in row] for row in table.raw)
    return text.getvalue().encode("utf-8", "replace")


def markdown_bytes(table: Table) -> bytes:
    """Return the shown rows as a Markdown table with its caption."""
    rule = ["---:" if column.numeric else "---" for column in table.shown]
    lines = [_cells(table, markdown_text)[0], rule, *_cells(table, markdown_text)[1:]]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*rows, "", markdown_text(table.caption), ""]).encode("utf-8", "replace")


def latex_bytes(table: Table) -> bytes:
    r"""Return the shown rows as a LaTeX tabular that needs no package."""
    head, *rows = [" & ".join(line) + r" \\" for line in _cells(table, _latex)]
    columns = "".join("r" if column.numeric else "l" for column in table.shown)
    lines = [
        f"% {_one_line(table.caption)}",
        "% Needs no package.",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        head,
        r"\hline",
        *rows,
        r"\hline",
        r"\end{tabular}",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def xlsx_bytes(tables: Iterable[Table]) -> bytes:
    """Return the raw rows of several tables as one workbook, a sheet each; the same bytes for the same tables."""
    from openpyxl import Workbook  # noqa: PLC0415  takes a second

    book = Workbook()
    book.remove(book.active)
    for table in tables:
        sheet = book.create_sheet(table.name[:31])
        for number, row in enumerate(table.raw, start=2):
            for place, value in enumerate(row, start=1):
                _fill(sheet.cell(number, place), value)
        sheet.freeze_panes = "B2"
        for place, key in enumerate(table.keys, start=1):
            _fill(sheet.cell(1, place), key, head=True)
            sheet.column_dimensions[sheet.cell(1, place).column_letter].width = min(max(len(key) + 2, 12), 40)
    content = io.BytesIO()
    book.save(content)
    return _undated(content.getvalue())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, None as an empty cell, with a header; a file in its place is replaced."""
    text = csv_text(rows[0], ([row[name] for name in rows[0]] for row in rows))
    write_atomically(path, lambda file: file.write(text.encode()))


def fixed(value: float | None, digits: int = 2) -> str:
    """Write a number with this many decimals."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", _MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Write a difference, with its sign."""
    text = fixed(value, digits)
    return text if text == DASH or text.startswith(_MINUS) or float(text) == 0 else f"+{text}"


def interval(ends: Sequence[float] | None, digits: int = 2) -> str:
    """Write an interval of differences."""
    return DASH if ends is None else f"{signed(ends[0], digits)} to {signed(ends[1], digits)}"


def plus_minus(mean: float | None, sd: float | None, digits: int = 2) -> str:
    """Write a mean with its standard deviation, if there is one."""
    return fixed(mean, digits) if mean is None or sd is None else f"{fixed(mean, digits)} ± {fixed(sd, digits)}"


def p_value(value: float | None) -> str:
    """Write a p-value: two digits that count, and no more than three decimals."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def markdown_text(text: str) -> str:
    """Write a text on one line of Markdown, in which nothing of it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", _one_line(text))


def thousands(value: float | None) -> str:
    """Write a whole number with commas."""
    return DASH if value is None or not math.isfinite(value) else f"{value:,.0f}".replace("-", _MINUS)


_MINUS = "\N{MINUS SIGN}"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _harmless(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _fill(cell: Any, value: Any, *, head: bool = False) -> None:
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE  # noqa: PLC0415
    from openpyxl.styles import Font  # noqa: PLC0415

    cell.value = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value
    if isinstance(value, str):
        cell.data_type = "s"  # a text that begins with = would be a formula
    if head:
        cell.font = Font(bold=True)


def _undated(workbook: bytes) -> bytes:
    """Take the hour of writing out of a workbook."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook)) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            part = old.read(name)
            if name == "docProps/core.xml":
                part = re.sub(rb"<dcterms:(created|modified)[^>]*>[^<]*</dcterms:\1>", b"", part)
            new.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), part, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _cells(table: Table, escape: Callable[[str], str]) -> list[list[str]]:
    head = [escape(column.title) for column in table.shown]
    return [head, *([escape(cell.text) for cell in row] for row in table.rows)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _latex(text: str) -> str:
    return _one_line(text).translate(_LATEX)


# [ and * too: after the \\ that ends a row they would be its argument.
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
        "\N{MINUS SIGN}": "$-$",
        "±": r"$\pm$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "\N{EN DASH}": "--",
        "µ": r"$\mu$",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
)
