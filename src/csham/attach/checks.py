"""Refuse names and settings of attaching that cannot work; importable without torch."""

from __future__ import annotations

from csham.attach.names import POSITIONS, STRATEGIES
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.settings import check_choice

__all__ = ["check_position", "check_strategy"]


def check_position(position: str, points: object = None) -> None:
    """Refuse an unknown position, and one beside ``points``, which says where too.

    Raises:
        UserError: With the nearest names.
    """
    check_choice("position", position, POSITIONS)
    if points is not None and position != "auto":
        raise UserError(f"attach: both position={position!r} and points= say where. Leave one out.")


def check_strategy(attention: str, strategy: str, period: int | None = None) -> None:
    """Refuse unknown names, a strategy that the attention has no parts for, and a period that means nothing.

    Raises:
        UserError: With the nearest names, or the strategies that would do.
    """
    check_choice("attention", attention, ATTENTIONS)
    check_choice("strategy", strategy, STRATEGIES)
    if STRATEGIES[strategy].needs_parts and not ATTENTIONS[attention].two_part:
        whole = [entry.name for entry in STRATEGIES.values() if not entry.needs_parts]
        two_part = [entry.name for entry in ATTENTIONS.values() if entry.two_part]
        raise UserError(
            f"strategy {strategy!r} needs an attention with a channel part and a spatial part ({', '.join(two_part)}); "
            f"{attention!r} has none. Use strategy {' or '.join(map(repr, whole))}."
        )
    _check_period(strategy, period)


def _check_period(strategy: str, period: int | None) -> None:
    if period is None:
        return
    if isinstance(period, bool) or not isinstance(period, int) or period < 2:
        raise UserError(f"period must be a whole number of at least 2 points, got {period!r}.")
    if strategy != "transfer":
        raise UserError(f"period is a setting of strategy 'transfer', not of {strategy!r}. Leave it out.")
