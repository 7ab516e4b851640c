"""The one exception that means "what you gave cannot work", and the sentence that offers the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "unknown_name"]


class UserError(ValueError):
    """What the user gave cannot work; the message says what, where, and what to do.

    The command line prints the message alone and ends with exit code 2; in Python it is a ``ValueError``.
    """


def unknown_name(
    kind: str, name: object, choices: Iterable[str], *, unlisted: Iterable[str] = (), hint: str = ""
) -> UserError:
    """Build the error for a name that is none of ``choices``, with the nearest ones first.

    Args:
        kind: What was being named, such as ``"backbone"``.
        name: What the user wrote.
        choices: Every name that would have been accepted.
        unlisted: More of these, too many to list; the nearest are still offered.
        hint: A sentence on them, put last.
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(name).lower(), [*choices, *unlisted], n=3, cutoff=0.5)
    near.sort(key=lambda other: other not in choices)  # a listed one is what most mean
    offer = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UserError(f"unknown {kind} {str(name)!r}. {offer}Known: {', '.join(choices)}. {hint}".rstrip())
