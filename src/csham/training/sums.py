"""Files of a run or a shared folder, believed only as they were written: ``csham.sha256`` beside them has their sums.

A run folder has the list from its first moment, so that of a file in it that is not listed nothing is believed either.
A folder without a list is from before there were any: it is read, and said to be unchecked, once.
Nothing here imports PyTorch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from csham.errors import UserError
from csham.files import SUMS, has_right_seal, read_sums, sha256_of, write_atomically, write_summed

__all__ = ["check_seal", "check_unchanged", "is_main_process", "write_listed"]

_LOG = logging.getLogger(__name__)
_said: set[Path] = set()


def is_main_process() -> bool:
    """Return True if this process writes and speaks; known from the launcher's variable, before PyTorch is imported."""
    return os.environ.get("RANK", "0") == "0"


def write_listed(writes: Mapping[Path, Callable[[IO[bytes]], Any]]) -> None:
    """Replace files at once, one after the other, and their sums where their folder has a list of them.

    Args:
        writes: By the path of each file, all of one run: writes the content to the open binary file it is given.

    Raises:
        UserError: The list is damaged.
    """
    home = _home(next(iter(writes)))
    if not (home / SUMS).exists():
        for path, write in writes.items():
            write_atomically(path, write)
        return
    try:
        write_summed(home, {path.relative_to(home).as_posix(): write for path, write in writes.items()})
    except ValueError as err:
        raise _damaged(home, err) from err


def check_unchanged(path: Path, what_to_do: str, *, by_itself: bool = False) -> bool:
    """Refuse a file that is not as it was written.

    Args:
        path: The file, which exists.
        what_to_do: Ends the message.
        by_itself: True if the file was named alone, so that a list beside it need not be about it.

    Returns:
        True if it has been checked; False if nothing says how it was written.

    Raises:
        UserError: It, or the list, was changed; or the folder has a list, and it is not in it.
    """
    home = _home(path)
    name, sums = path.relative_to(home).as_posix(), _sums(home)
    if sums is None or (by_itself and name not in sums):
        if sums is None and not by_itself:
            _say_unchecked(home)
        return False
    if name not in sums:
        raise UserError(f"{path} was not written with the rest of {home}, whose {SUMS} does not list it. {what_to_do}")
    before = None
    while True:
        digest = sha256_of(path)
        if digest in sums.get(name, ()):
            return True
        if (digest, sums) == before:  # no run that is under way is replacing the file, and then its line
            raise UserError(
                f"{path} was changed since it was written: its SHA-256 is not the one in {home / SUMS}. {what_to_do}"
            )
        before, sums = (digest, sums), _sums(home) or sums


def _sums(home: Path) -> dict[str, tuple[str, ...]] | None:
    try:
        return read_sums(home)
    except ValueError as err:
        raise _damaged(home, err) from err


def check_seal(path: Path, what_to_do: str) -> None:
    """Refuse a file with a checksum of its own in it that is another's; without one it is from before there were any.

    Raises:
        UserError: It was changed.
    """
    if has_right_seal(path) is False:
        raise UserError(
            f"{path} was changed since it was written: its SHA-256 is not the one in its metadata. {what_to_do}"
        )


def _home(path: Path) -> Path:
    """Return the folder of the list in which a file is."""
    in_run = path.parent.name == "checkpoints" and not (path.parent / SUMS).exists()  # or a run has that name
    return path.parent.parent if in_run else path.parent


def _damaged(home: Path, err: ValueError) -> UserError:
    return UserError(
        f"{home / SUMS}, which has the sums of the other files, was changed since it was written: {err}. Put back a "
        f"copy of it. Without it, {home} is read unchecked."
    )


def _say_unchecked(home: Path) -> None:
    if home.absolute() not in _said and is_main_process():
        _said.add(home.absolute())
        _LOG.warning(
            "%s has no %s, as of an earlier version: whether its files were changed cannot be told", home, SUMS
        )
