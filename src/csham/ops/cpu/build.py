"""Find the library of the C++ kernels: the one that came with csham, or one compiled once for each user and kept.

A compiled library's folder below the cache is named by all that it is made of, so what is there fits or is not looked
at. It appears whole, by a rename, or holds the log of a build that failed. One lock, which the system releases with
the process that holds it, lets one process of a user build at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from csham.files import cache_root
from csham.ops.cpu.compiler import (
    Compiler,
    Unavailable,
    compile_library,
    estimated_seconds,
    extra_flags,
    find_compiler,
    own_flags,
)
from csham.ops.cpu.ready import LIBRARY, digest_of, find_ready

__all__ = [
    "Library",
    "build_library",
    "clear",
    "find_library",
    "kernels_root",
    "own_library",
]

SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Library:
    """The kernels as they came with csham, or as built, or to be built, from these sources for this PyTorch.

    Attributes:
        folder: Folder of the library, or of the log of the build that failed.
        sources: Folder of the C++ sources.
        compiler: Compiler that builds it; None where another machine built it.
        refused: Reason why this is not the library that came with csham; empty if it is, or if none did.
    """

    folder: Path
    sources: Path
    compiler: Compiler | None
    refused: str = ""

    @property
    def path(self) -> Path:
        """The shared library."""
        return self.folder / LIBRARY

    @property
    def log(self) -> Path:
        """File that has what the compiler said when it failed."""
        return self.folder / "failed.log"

    @property
    def state(self) -> str:
        """``ready`` if it came with csham; ``built``, ``failed`` or ``not built``."""
        if self.folder.parent == self.sources:
            return "ready"
        if self.path.is_file():
            return "built"
        return "failed" if self.log.is_file() else "not built"

    def about(self) -> dict[str, Any]:
        """Return compiler, flags, seconds and date of the build that made it, as far as it is known."""
        with contextlib.suppress(OSError, ValueError):
            about: dict[str, Any] = json.loads((self.folder / "about.json").read_bytes())
            return about
        return {}

    def failure(self) -> Unavailable:
        """Return the error that says how building it failed."""
        said = _errors(self.log.read_text(encoding="utf-8", errors="replace"))
        return Unavailable(
            f"building the CPU kernels failed: {said}. All of it: {self.log}. `csham doctor --rebuild`, or deleting "
            "that folder, tries again; CXX in the environment names another compiler."
        )


def kernels_root() -> Path:
    """The folder of every library built for this user."""
    return cache_root() / "kernels"


def find_library(sources: Path = SOURCES) -> Library:
    """Say where the library is or will be: one that was built here, or else the one that came with csham.

    Raises:
        Unavailable: There is neither a library nor a compiler.
    """
    ready, refused = find_ready(sources)
    if ready is None or refused:
        return own_library(sources, refused)
    # Where nothing was ever built, the compilers need not be asked who they are.
    if any(kernels_root().glob(f"{_made_of(sources)}-*")):
        with contextlib.suppress(Unavailable):
            own = own_library(sources)
            if own.state == "built":
                return own
    return Library(ready, sources, None)


def own_library(sources: Path = SOURCES, refused: str = "") -> Library:
    """Say where the library for these sources, this PyTorch and this compiler is or will be built.

    Without a compiler, whichever compiler's library is there serves: the home of a cluster is built on one node.

    Args:
        sources: Folder of the sources.
        refused: Reason why the library that came with csham is not used.

    Raises:
        Unavailable: There is neither a library nor a compiler.
    """
    compiler = find_compiler()
    made_of = _made_of(sources)
    if compiler is not None:
        made_by = _digest(compiler.version, *own_flags(compiler))[:8]
        return Library(kernels_root() / f"{made_of}-{made_by}", sources, compiler, refused)
    found = (Library(folder, sources, None, refused) for folder in sorted(kernels_root().glob(f"{made_of}-*")))
    for library in found:
        if library.state == "built":
            return library
    chosen = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else "g++, c++ or clang++"
    raise Unavailable(
        f"{_not_used(refused)}the CPU kernels are built on first use by a C++ compiler, and there is no {chosen}. "
        "Install one (Debian and Ubuntu: apt install g++; conda: conda install cxx-compiler) or name it by CXX in the "
        "environment."
    )


def build_library(library: Library, *, again: bool = False) -> None:
    """Build a library, or wait for the process that does; afterwards it is built, or failed and says why.

    Args:
        library: As :func:`own_library` returns it.
        again: True to build it also where it was built, or failed, before.

    Raises:
        Unavailable: The cache cannot be written, or the build was cut short. Another process will try again.
    """
    root = library.folder.parent
    try:
        with _locked(root):
            if again:
                shutil.rmtree(library.folder, ignore_errors=True)
            if library.state == "not built":
                # Linux alone has the name, and Windows not even the function.
                if hasattr(os, "ST_NOEXEC") and os.statvfs(root).f_flag & os.ST_NOEXEC:
                    raise OSError(errno.EACCES, "nothing can be run from there, which is mounted noexec")
                _build(library)
    except OSError as err:
        raise Unavailable(
            f"the CPU kernels cannot be kept in {root}: {err.strerror or err}. Another folder: CSHAM_CACHE=DIR in the "
            "environment."
        ) from err


def clear() -> None:
    """Remove every library from the cache, whatever version of csham built it.

    Raises:
        OSError: One of them cannot be removed.
    """
    root = kernels_root()
    if root.is_dir():
        with _locked(root):
            for folder in root.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("waiting for another process that builds the CPU kernels")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(library: Library) -> None:
    """Compile into a temporary folder, and give it its name when it is whole."""
    compiler = library.compiler
    assert compiler is not None  # find_library returns nothing unbuilt without one
    for leftover in library.folder.parent.glob(".*.tmp"):  # of a process that died: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    # Never the same name: compilers may outlive the process that died, and go on writing.
    temporary = library.folder.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        began = time.monotonic()
        _say(f"{_not_used(library.refused)}building the CPU kernels (once, about {estimated_seconds()} s) ...")
        failed = compile_library(library.sources, compiler, temporary / library.path.name)
        seconds = round(time.monotonic() - began, 1)
        for scratch in temporary.glob("*.o*"):
            scratch.unlink()
        _write_about(temporary, compiler, seconds)
        if failed:
            (temporary / library.log.name).write_text(failed, encoding="utf-8")
        shutil.rmtree(library.folder, ignore_errors=True)  # another process may have left parts of one
        temporary.replace(library.folder)
        _say(f"building the CPU kernels failed after {seconds} s" if failed else f"built in {seconds} s")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_about(folder: Path, compiler: Compiler, seconds: float) -> None:
    about = {
        "compiler": compiler.name,
        "threads": compiler.shares_threads,
        "flags": own_flags(compiler),
        "torch": torch.__version__,
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _made_of(sources: Path) -> str:
    """Hash everything that goes into the library, but for the compiler.

    The processor does not: every instruction set is in the library, which chooses when it runs. With ``-march=native``
    among the extra flags it does.
    """
    parts = [torch.__version__, str(torch.version.git_version), platform.machine(), *platform.libc_ver()]
    parts += [sys.platform, *extra_flags()]
    if any("native" in flag for flag in extra_flags()):
        parts.append(_processor_flags())
    return _digest(*parts, digest_of(sources))[:16]


def _processor_flags() -> str:
    with contextlib.suppress(OSError):
        found = re.search(
            r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
        if found:
            return found.group()
    return platform.processor()


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _errors(log: str) -> str:
    """The lines of a compiler's log that say most, shortened."""
    lines = [line.strip() for line in log.splitlines()[1:] if line.strip()]
    telling = [line for line in lines if "error" in line.lower()][:2] or lines[-2:] or ["it said nothing"]
    return " | ".join(line if len(line) < 200 else f"{line[:200]}..." for line in telling)


def _not_used(refused: str) -> str:
    return f"the kernels that came with csham are not used: {refused}; " if refused else ""


def _say(what: str) -> None:
    print(f"csham: {what}", file=sys.stderr, flush=True)  # noqa: T201
