"""What every benchmark row says of where it was measured, and the file it goes to."""

from __future__ import annotations

import csv
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

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


def circumstances() -> dict[str, Any]:
    """Return the columns that all benchmarks share."""
    git = ["git", "-C", str(DATA.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Return the processor's name, as the system spells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
