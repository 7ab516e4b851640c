"""A table of runs that any trainer wrote: CSV, TSV, JSON lines, Parquet, or a data frame, read into rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csham.data.sources.parquet import need_pyarrow, reading
from csham.data.sources.table import rows_of
from csham.errors import UserError
from csham.files import parse_json

__all__ = ["Row", "RunTable", "read_runs"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        place: Where it stands, for messages: ``line 3``.
        values: By column, as the file or the frame has them.
    """

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RunTable:
    """Rows with their columns.

    Attributes:
        name: Of the file, or "the table".
        columns: In the order of their first appearance.
        rows: At least one.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


def read_runs(table: Any) -> RunTable:
    """Read a table.

    Args:
        table: Path of a CSV, TSV, JSON lines or Parquet file; or a data frame (pandas, polars, pyarrow), an iterable of
            mappings, or a mapping of columns.

    Raises:
        UserError: It cannot be read, or is empty.
    """
    if isinstance(table, str | Path):
        name, rows = str(table), list(_read_file(Path(table)))
    else:
        name, rows = "the table", [Row(f"row {i}", _flat(row)) for i, row in enumerate(_records(table), 1)]
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    if not rows or not columns:
        raise UserError(f"{name} holds no runs. A line for each run is needed, with its variant, seed and metrics.")
    return RunTable(name, columns, rows)


def _read_file(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise UserError(f"there is no file {path}. Name a table of runs: CSV, TSV, JSON lines or Parquet.")
    readers = {
        **dict.fromkeys((".csv", ".tsv", ".txt"), _read_csv),
        **dict.fromkeys((".jsonl", ".ndjson"), _read_json_lines),
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is no table that can be read here. Known endings: {', '.join(readers)}.")
    return reader(path)


def _read_csv(path: Path) -> Iterator[Row]:
    rows = rows_of(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise UserError(f"{path} has several columns named {twice[0]!r}. Each needs a name of its own.")
    for number, row in rows:
        yield Row(f"line {number}", {name: value.strip() for name, value in zip(header, row, strict=True) if name})


def _read_json_lines(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as err:
        raise UserError(f"cannot read {path}: {err.strerror}. Check its permissions.") from err
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = parse_json(_PYTHONS.sub(_quoted, line))
        except ValueError as err:
            raise UserError(f"line {number} of {path} is no JSON: {err}.") from err
        if not isinstance(content, dict):
            raise UserError(f"line {number} of {path} should be an object of JSON, a name and a value for each column.")
        yield Row(f"line {number}", _flat(content))


# Strings, and what Python's json writes of numbers that JSON has not: a failed run's loss.
_PYTHONS = re.compile(rb'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')


def _quoted(part: re.Match[bytes]) -> bytes:
    return part[0] if part[0].startswith(b'"') else b'"%b"' % part[0]


def _read_parquet(path: Path) -> Iterator[Row]:
    need_pyarrow(path)
    import pyarrow.parquet  # noqa: PLC0415

    with reading(path):
        records = pyarrow.parquet.read_table(path).to_pylist()
    return (Row(f"row {number}", _flat(record)) for number, record in enumerate(records, 1))


def _records(table: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a frame; each library has a name of its own for that."""
    for method, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if callable(convert := getattr(table, method, None)):
            records: Iterable[Mapping[str, Any]] = convert(*arguments)
            return records
    if isinstance(table, Mapping):
        columns = {name: list(_column(name, column)) for name, column in table.items()}
        if len(set(map(len, columns.values()))) > 1:
            raise UserError("the columns of the table differ in length.")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    records = list(table) if isinstance(table, Iterable) else [table]
    if not all(isinstance(record, Mapping) for record in records):
        raise UserError("a table is a path, a data frame, an iterable of mappings, or a mapping of columns.")
    return records


def _column(name: Any, column: Any) -> Iterable[Any]:
    if isinstance(column, Iterable) and not isinstance(column, str | bytes | Mapping):
        return column
    raise UserError(
        f"column {name!r} of the table should be a list of values, one for each run, got {ascii(column)[:60]}."
    )


def _flat(record: Mapping[Any, Any], before: str = "") -> dict[str, Any]:
    """Return nested objects as columns such as ``result.top1``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and before.count(".") < _DEEPEST:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


_DEEPEST = 8
