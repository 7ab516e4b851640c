"""Provenance of a number: machine, versions, commit, date."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["circumstances", "commit", "processor", "versions"]


def circumstances() -> dict[str, Any]:
    """Return what makes a row of measurements believable alone, as plain values."""
    import torch  # noqa: PLC0415  commands that only look names up import this module too

    return {
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(7) or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Return the processor's name, as the system spells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit(digits: int = 40) -> str | None:
    """Return the commit of the source tree csham runs from, with ``-dirty`` if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", f"--abbrev={digits}", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
