"""Rows of measurements in a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from csham.files import write_atomically

__all__ = ["write_csv"]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, None as an empty cell, with a header; a file in its place is replaced."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
