"""Folder of cached files, and files that a reader or a crash meets whole: old content or new, never half of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

__all__ = ["cache_root", "parse_json", "sha256_of", "write_atomically"]


def cache_root(cache_dir: Path | None = None) -> Path:
    """The folder for everything cached: the one given, or ``$CSHAM_CACHE``, or the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    if chosen := os.environ.get("CSHAM_CACHE"):
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "csham"


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace ``path`` by what ``write`` writes, at once.

    Args:
        path: The file; its folder exists.
        write: Writes the content to the open binary file it is given.

    Raises:
        OSError: With ``filename`` set, also where the disk is full; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        err.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """Read JSON that anyone may have written.

    Raises:
        ValueError: It is not UTF-8 or not JSON, names a key twice, holds NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:60]!r} is there twice")
        found[name] = value
    return found


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")
