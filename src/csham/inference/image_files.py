"""The images that a command line names: files, folders, and paths on standard input."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csham.data.sources.folder import image_files
from csham.data.sources.layout import note_unread, unread_kind
from csham.errors import UserError

__all__ = ["ImageFiles"]

_BLOCK = 65536


@dataclass(frozen=True)
class ImageFiles:
    """Paths of images, found while they are iterated over.

    A file is given as it is named, whatever its name ends with; of a folder, the files below it whose names are those
    of images, sorted, links followed; ``-`` reads files and folders from standard input, one a line. What turns out not
    to be there while iterating is given as it is: opening it will tell why. A warning counts a folder's photographs
    that are left out since Pillow cannot read their kind.

    Attributes:
        names: Files, folders and at most one ``-``.
        null: True if on standard input each path ends with a NUL character, as ``find -print0`` writes them, not with
            the line.
        stdin: Descriptor of standard input. Python's own buffer of it is passed by.
    """

    names: Sequence[str]
    null: bool = False
    stdin: int = 0

    def check(self) -> None:
        """Refuse what is not there, before anything long begins.

        Raises:
            UserError: A name is neither a file nor a folder with images.
        """
        if list(self.names).count("-") > 1:
            raise UserError("- reads all of standard input; give it once.")
        for name in self.names:
            if name != "-":
                _check(name)

    def count(self) -> int | None:
        """Count the images, by listing them; None where some are to come from standard input."""
        return None if "-" in self.names else sum(1 for name in self.names for _ in _below(name, Counter()))

    def __iter__(self) -> Iterator[str]:
        """Give path after path.

        Raises:
            UserError: Standard input holds something other than paths.
        """
        for name in self.names:
            if name == "-":
                for line in self._lines():
                    yield from _told(line)
            else:
                yield from _told(name)

    def _lines(self) -> Iterator[str]:
        """Lines of standard input, each as soon as it is there."""
        end = b"\0" if self.null else b"\n"
        rest = b""
        while block := os.read(self.stdin, _BLOCK):
            *lines, rest = (rest + block).split(end)
            yield from filter(None, map(self._path, lines))
        if rest:
            yield self._path(rest)

    def _path(self, line: bytes) -> str:
        if not self.null:
            line = line.removesuffix(b"\r")  # a list that was written on Windows
            if b"\0" in line:
                raise UserError(
                    "standard input is not a list of paths, one a line: it holds NUL characters. "
                    "Those of find -print0 need --null; an image itself is given by its name."
                )
        return os.fsdecode(line)


def _told(name: str) -> Iterator[str]:
    """Images of a folder, or else the name itself; at the end, photographs that were left out are told of."""
    unread: Counter[str] = Counter()
    yield from _below(name, unread)
    if unread:
        warnings.warn(f"{name}: {note_unread(unread)}", stacklevel=2)


def _below(name: str, unread: Counter[str]) -> Iterator[str]:
    """The images of a folder, or else the name itself; also that of a folder without any."""
    found = False
    if os.path.isdir(name):  # noqa: PTH112 - names stay as they were written
        for path in _readable(name, unread):
            found = True
            yield path
    if not found:
        yield name


def _readable(folder: str, unread: Counter[str]) -> Iterator[str]:
    """The images of a folder, but for photographs that cannot be read: their endings are counted."""
    for path in image_files(folder):
        if (kind := unread_kind(path)) is None:
            yield path
        else:
            unread[kind] += 1


def _check(name: str) -> None:
    if os.path.isdir(name):  # noqa: PTH112
        unread: Counter[str] = Counter()
        if next(_readable(name, unread), None) is None:
            why = f" ({note_unread(unread)})" if unread else ""
            raise UserError(
                f"no file below the folder {name} is an image by its name{why}. Files that are named themselves are "
                "tried whatever their names."
            )
    elif not os.path.lexists(name):  # a broken link is a file that cannot be read, one of perhaps many
        if any(sign in name for sign in "*?["):
            raise UserError(
                f"no file is called {name!r}: the pattern matched nothing, or quotes kept it from matching."
            )
        raise UserError(f"there is no file or folder {name!r}.")
