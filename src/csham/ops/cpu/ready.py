"""The library that comes with csham's wheel, built from the same sources: what it is for, and why it is not used."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import torch

from csham.ops.cpu.compiler import Compiler, extra_flags, own_flags

__all__ = ["LIBRARY", "describe", "digest_of", "find_ready", "refuse", "why_not"]

LIBRARY = "csham_kernels.so"
_ABOUT = "about.json"
# The first that has the whole of the C interface which tensors.h calls.
_LOWEST_TORCH = "2.8"
# Folders whose library this process could not load, and why.
_refused: dict[Path, str] = {}


def find_ready(sources: Path) -> tuple[Path | None, str]:
    """Find the library that lies with the sources, in their own folder and nowhere else.

    Args:
        sources: Folder of the C++ sources.

    Returns:
        Its folder, and why it is not used: an empty text if it is. No folder and no reason if there is none.
    """
    folder = sources / "ready"
    if not folder.is_dir():
        return None, ""
    if not (folder / LIBRARY).resolve().is_relative_to(sources.resolve()):
        return folder, f"{folder / LIBRARY} is a link to elsewhere"
    return folder, _refused.get(folder) or why_not(folder, sources)


def why_not(folder: Path, sources: Path) -> str:
    """Say why a library cannot be used here, for these sources; an empty text if it can."""
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        made_for = f"{about['machine']} on {about['system']}"
        made_of = about["sources"]
        if about["sha256"] != _sum(folder / LIBRARY):
            return f"{folder / LIBRARY} is damaged; installing csham again mends it"
    except (OSError, ValueError, LookupError, TypeError) as err:
        return f"{folder} is incomplete ({type(err).__name__}: {err}); installing csham again mends it"
    here = f"{platform.machine()} on {sys.platform}"
    asked = {
        f"they are for {made_for}, and this is {here}": made_for != here,
        f"they need PyTorch {_LOWEST_TORCH} or later, and this is {torch.__version__}": _older(torch.__version__),
        "they were built from other sources than those beside them": made_of != digest_of(sources),
        "CSHAM_CXXFLAGS asks for other flags": bool(extra_flags()),
    }
    return next((reason for reason, holds in asked.items() if holds), "")


def refuse(folder: Path, reason: str) -> None:
    """Use a library no more in this process."""
    _refused[folder] = reason


def describe(folder: Path, sources: Path, compiler: Compiler, seconds: float) -> None:
    """Write beside a library what it was made of and for, which is what :func:`find_ready` compares.

    Args:
        folder: Folder of the library.
        sources: Folder of the sources that it was made of.
        compiler: Compiler that made it.
        seconds: Time that it took.
    """
    about = {
        "compiler": compiler.name,
        "threads": compiler.shares_threads,
        "flags": own_flags(compiler),
        "system": sys.platform,
        "machine": platform.machine(),
        "sources": digest_of(sources),
        "sha256": _sum(folder / LIBRARY),
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def digest_of(sources: Path) -> str:
    """Hash the C++ sources."""
    digest = hashlib.sha256()
    for source in sorted((*sources.glob("*.cpp"), *sources.glob("*.h"))):
        digest.update(json.dumps([source.name, source.read_text(encoding="utf-8")]).encode())
    return digest.hexdigest()


def _older(version: str) -> bool:
    return torch.torch_version.TorchVersion(version) < _LOWEST_TORCH


def _sum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
