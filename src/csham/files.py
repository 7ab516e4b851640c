"""Files that a reader or a crash meets whole: the old content or the new, never half of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

__all__ = ["write_atomically"]


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
