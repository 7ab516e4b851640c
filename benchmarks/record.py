"""What every benchmark row says of where it was measured, and the file it goes to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from csham.provenance import circumstances

DATA = Path(__file__).parent / "data"


def append_rows(benchmark: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows to ``benchmarks/data/<benchmark>.csv``, each with machine, versions, commit and date."""
    path = DATA / f"{benchmark}.csv"
    path.parent.mkdir(exist_ok=True)
    full = [row | circumstances() for row in rows]
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(full[0]))
        if new:
            writer.writeheader()
        writer.writerows(full)
    return path
