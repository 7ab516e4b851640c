"""The C++ kernels: a file for each operator of ``ops.operators``, with its kernels, which are compiled once for each
instruction set, and what offers them to PyTorch. ``sample.h`` says what is done with one image, ``kernel.h`` how.

``ready`` finds those that came with csham's wheel, ``build`` keeps others built, by means of ``compiler``; :func:`load`
brings them into this process.
"""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from csham.ops.cpu.build import SOURCES, Library, build_library, find_library
from csham.ops.cpu.compiler import Unavailable
from csham.ops.cpu.ready import refuse

__all__ = ["Library", "Unavailable", "load"]

_lock = threading.Lock()
_loaded: dict[Path, Library] = {}
_failed: dict[Path, str] = {}


def load(sources: Path = SOURCES) -> Library:
    """Load the kernels into this process, after building them if none came with csham and no process has.

    Only the first call does anything: what failed once in a process is not tried again in it.

    Args:
        sources: Folder of the sources.

    Returns:
        The library that is loaded.

    Raises:
        Unavailable: They cannot be built or loaded.
    """
    with _lock:
        if sources in _failed:
            raise Unavailable(_failed[sources])
        if sources not in _loaded:
            try:
                _loaded[sources] = _load(sources)
            except (OSError, RuntimeError) as err:
                _failed[sources] = str(err)
                raise
        return _loaded[sources]


def _load(sources: Path) -> Library:
    library = find_library(sources)
    if library.state == "ready":
        try:
            return _opened(library)
        except OSError as err:
            refuse(library.folder, f"they cannot be loaded: {err.__cause__ or err}")
        library = find_library(sources)
    if library.state == "not built":
        build_library(library)
    if library.state == "failed":
        raise library.failure()
    try:
        return _opened(library)
    except OSError as err:
        raise Unavailable(
            f"the CPU kernels were built and cannot be loaded: {err.__cause__ or err}. `csham doctor --rebuild`, or "
            f"deleting {library.folder}, builds them anew."
        ) from err


def _opened(library: Library) -> Library:
    torch.ops.load_library(str(library.path))
    return library
