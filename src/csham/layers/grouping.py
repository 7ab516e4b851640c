"""Into how many groups channels can be split."""

from __future__ import annotations

__all__ = ["largest_divisor"]


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of ``number`` that is not above ``at_most``; both at least 1."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
