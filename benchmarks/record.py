"""What benchmarks share: what every row says of where it was measured, the file it goes to, and options."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from csham.provenance import circumstances

DATA = Path(__file__).parent / "data"


def append_rows(benchmark: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows to ``benchmarks/data/<benchmark>.csv``, each with machine, versions, commit and date.

    Raises:
        ValueError: The file has other columns.
    """
    path = DATA / f"{benchmark}.csv"
    path.parent.mkdir(exist_ok=True)
    full = [row | circumstances() for row in rows]
    new = not path.exists()
    if not new and (there := path.read_text(encoding="utf-8").partition("\n")[0].strip().split(",")) != list(full[0]):
        raise ValueError(f"{path} has the columns {there}, the new rows {list(full[0])}: move the file away first.")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(full[0]))
        if new:
            writer.writeheader()
        writer.writerows(full)
    return path


def latest_rows(benchmark: str, keys: Sequence[str]) -> list[dict[str, str]]:
    """Read ``benchmarks/data/<benchmark>.csv``: of all rows that agree in ``keys`` the one appended last.

    Args:
        benchmark: Its name.
        keys: Columns.

    Returns:
        The rows, as text, in the order of the file; none if there is no such file.
    """
    path = DATA / f"{benchmark}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list({tuple(row[key] for key in keys): row for row in csv.DictReader(file)}.values())


def list_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: names separated by commas, each one of ``names``."""
    known = list(names)

    def parse(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return text.split(",")

    return parse
