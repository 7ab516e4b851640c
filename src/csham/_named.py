"""Entry of a table of names: the fields that all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Named", "table"]


@dataclass(frozen=True)
class Named:
    """Something that a user can name.

    Attributes:
        name: Name that functions and options take.
        summary: Description of it in a few words.
        source: Paper, and the code it comes from.
    """

    name: str
    summary: str
    source: str


Entry = TypeVar("Entry", bound=Named)


def table(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Put entries in a dict by their names."""
    return {entry.name: entry for entry in entries}
