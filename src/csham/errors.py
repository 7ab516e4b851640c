"""The one exception that means "what you gave cannot work", and sentences of messages: names, and the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from csham.words import printable

__all__ = ["UserError", "any_of", "first_line_of", "known_names", "nearest_names", "unknown_name"]

_LONGEST = 4000  # signs of a line; a path may have some thousand
_FEW = 5  # that many names are read faster than they are listed
_LISTED = {
    "attention": "attentions",
    "backbone": "backbones",
    "dataset": "datasets",
    "position": "positions",
    "recipe": "recipes",
    "network of the zoo": "zoo",
    "strategy": "strategies",
}


class UserError(ValueError):
    """Error in what the user gave; the message says what, where, and what to do.

    The command line prints the message alone and ends with exit code 2; in Python it is a ``ValueError``. What the
    message quotes needs no care: what cannot be printed is written out, and of what is longer than anyone reads the
    middle is left out.

    Args:
        message: One line.
        below: Further lines, such as the end of a log.
    """

    def __init__(self, message: str, *below: str) -> None:
        super().__init__(message, *below)

    def __str__(self) -> str:
        return "\n".join(_readable(line) for line in self.args)


def _readable(line: object) -> str:
    text = printable(line)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"


def unknown_name(
    kind: str, name: object, choices: Iterable[str], *, unlisted: Iterable[str] = (), hint: str = ""
) -> UserError:
    """Build the error for a name that is none of ``choices``.

    Args:
        kind: Kind of thing named, such as ``"backbone"``.
        name: Name that the user wrote.
        choices: Every name that would have been accepted.
        unlisted: More of these, too many to list; the nearest are still offered.
        hint: A sentence on them, put last.
    """
    return UserError(
        f"unknown {kind} {str(name)[:255]!r}. {known_names(kind, name, choices, unlisted)} {hint}".rstrip()
    )


def known_names(kind: str, name: object, choices: Iterable[str], unlisted: Iterable[str] = ()) -> str:
    """Say which names would have been accepted: the nearest, and where all are, or all where they are few."""
    choices = list(choices)
    near = nearest_names(name, choices, unlisted)
    if len(choices) > _FEW and kind in _LISTED:
        return f"{near}csham list {_LISTED[kind]} shows all."
    if len(choices) > _FEW and near:
        return near.rstrip()
    return f"{near}Known: {', '.join(choices)}."


def nearest_names(name: object, choices: Iterable[str], unlisted: Iterable[str] = ()) -> str:
    """Ask whether one of the nearest three was meant, with a space behind; nothing where none is near."""
    choices = list(choices)
    near = difflib.get_close_matches(str(name).lower(), [*choices, *unlisted], n=3, cutoff=0.5)
    near.sort(key=lambda other: other not in choices)  # a listed one is what most mean
    return f"Did you mean {' or '.join(map(repr, near))}? " if near else ""


def first_line_of(err: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(err).strip() or type(err).__name__).splitlines()[0]


def any_of(names: Sequence[str], word: str = "or") -> str:
    """Write names as a sentence has them."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
