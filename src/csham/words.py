"""Words on the terminal: what comes from outside is written out where it would disturb a line or the terminal.

Names of files, classes and columns, members of archives, metadata, and errors that quote these may hold escape
sequences, line ends, signs that turn the direction of writing, or bytes that are no UTF-8. Errors, notes of progress,
tables and every other line that is printed pass them through :func:`printable`; files hold them as they are.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["counted", "path_word", "printable", "say", "some"]


def printable(text: object) -> str:
    """Write out the signs of a text that cannot be printed, as Python does in a literal; line ends are among them."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def say(*lines: object, error: bool = False) -> None:
    """Print lines, none of which becomes two.

    Args:
        lines: One or more.
        error: True for standard error.
    """
    text = "\n".join(map(printable, lines))
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def path_word(path: Path) -> str:
    """Write a path as a word of a command, which takes it neither apart nor for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """Write a number with its noun, in the plural where it is not one."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def some(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """Name the first few, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more
