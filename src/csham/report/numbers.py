"""Numbers as they are read: fixed digits, a real minus sign, and a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["DASH", "fixed", "interval", "p_value", "plus_minus", "signed", "thousands"]

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def fixed(value: float | None, digits: int = 2) -> str:
    """Write a number with this many decimals."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", _MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Write a difference, with its sign."""
    text = fixed(value, digits)
    return text if text == DASH or text.startswith(_MINUS) or float(text) == 0 else f"+{text}"


def interval(ends: Sequence[float] | None, digits: int = 2) -> str:
    """Write an interval of differences."""
    return DASH if ends is None else f"{signed(ends[0], digits)} to {signed(ends[1], digits)}"


def plus_minus(mean: float | None, sd: float | None, digits: int = 2) -> str:
    """Write a mean with its standard deviation, if there is one."""
    return fixed(mean, digits) if mean is None or sd is None else f"{fixed(mean, digits)} ± {fixed(sd, digits)}"


def p_value(value: float | None) -> str:
    """Write a p-value: two digits that count, and no more than three decimals."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def thousands(value: float | None) -> str:
    """Write a whole number with commas."""
    return DASH if value is None or not math.isfinite(value) else f"{value:,.0f}".replace("-", _MINUS)
