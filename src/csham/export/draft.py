"""Files that appear under their name only when they are finished and checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csham.errors import UserError

__all__ = ["check_free", "draft_of"]


def check_free(path: Path, force: bool) -> None:
    """Refuse to replace what exists, unless ``force`` and it is a file.

    Raises:
        UserError: Something is there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already. Name another file, or replace it with --force (force=True).")


@contextmanager
def draft_of(path: Path, force: bool) -> Iterator[Path]:
    """Give a place beside a file's to make it in; at the end of the block it moves to its own.

    If the block raises, nothing is left, neither of the file nor of the folders that were made for it.

    Raises:
        UserError: Something is there already (:func:`check_free`).
        OSError: The folder cannot be made or written to.
    """
    check_free(path, force)
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds the file
                parent.rmdir()
