"""Work that gives way after each step, so that one process can do several pieces of it in turns.

It is a generator that yields how much the step was, in images trained with, and returns its result at the end. Done
alone it is drained; :mod:`csham.study.together` lets several take turns. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

__all__ = ["EVALUATED", "Turns", "drain"]

T = TypeVar("T")

Turns: TypeAlias = Generator[float, None, T]

EVALUATED = 1 / 3
"""Work of an image that is only answered: the forward pass, where training takes a backward pass of twice that too."""


def drain(turns: Turns[T]) -> T:
    """Do all of it, and return the result."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            result: T = end.value
            return result
