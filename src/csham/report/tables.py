"""Tables, and the files they become: CSV and XLSX with every digit, Markdown and LaTeX as they are read.

Names in them are third-party text: no cell becomes a formula, a tag or a command.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cell", "Column", "Table", "csv_bytes", "latex_bytes", "markdown_bytes", "xlsx_bytes"]

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Column:
    """One column as it is read.

    Attributes:
        title: Its head.
        numeric: Set to the right, and sorted by number.
        help: Meaning of the column in a few words.
    """

    title: str
    numeric: bool = True
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell as it is read.

    Attributes:
        text: Text shown.
        value: Value by which the column is sorted; None goes last.
        mark: A class of the style sheet.
    """

    text: str
    value: Value = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table, for readers and for programs.

    Attributes:
        name: Stem of its files.
        caption: Summary of what it shows.
        columns: As they are read.
        rows: As they are read; as many cells as columns.
        raw: The same and more for programs: rows of the same keys, with every digit.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    raw: Sequence[Mapping[str, Value]] = field(default=())


def csv_bytes(table: Table) -> bytes:
    """Return the raw rows as CSV; texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_keys(table))
    writer.writerows([_harmless(value) for value in row.values()] for row in table.raw)
    return text.getvalue().encode("utf-8", "replace")


def markdown_bytes(table: Table) -> bytes:
    """Return the shown rows as a Markdown table with its caption."""
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [_cells(table, _markdown)[0], rule, *_cells(table, _markdown)[1:]]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*rows, "", _markdown(table.caption), ""]).encode("utf-8", "replace")


def latex_bytes(table: Table) -> bytes:
    r"""Return the shown rows as a LaTeX tabular that needs no package."""
    head, *rows = [" & ".join(line) + r" \\" for line in _cells(table, _latex)]
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
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
        for number, row in enumerate([_keys(table), *(row.values() for row in table.raw)], start=1):
            for place, value in enumerate(row, start=1):
                _fill(sheet.cell(number, place), value, head=number == 1)
        sheet.freeze_panes = "B2"
        for place, key in enumerate(_keys(table), start=1):
            sheet.column_dimensions[sheet.cell(1, place).column_letter].width = min(max(len(key) + 2, 12), 40)
    content = io.BytesIO()
    book.save(content)
    return _undated(content.getvalue())


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _harmless(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _keys(table: Table) -> list[str]:
    return list(table.raw[0]) if table.raw else [column.title for column in table.columns]


def _fill(cell: Any, value: Any, *, head: bool) -> None:
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
    head = [escape(column.title) for column in table.columns]
    return [head, *([escape(cell.text) for cell in row] for row in table.rows)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", _one_line(text))


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
