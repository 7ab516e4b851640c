"""Strategies: which step stands at which point, and which point lends its channel weights to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csham.attach.names import STRATEGIES
from csham.attach.points import Point
from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS

__all__ = ["Step", "check_strategy", "plan"]


@dataclass(frozen=True)
class Step:
    """What a strategy puts at one point.

    Attributes:
        point: Where.
        part: ``"whole"``, ``"channel"`` or ``"spatial"``: which part of the attention.
        lends: Whether its channel weights are used again by later points.
        weights_from: Name of the point whose channel weights it applies first, or None.
    """

    point: Point
    part: str
    lends: bool = False
    weights_from: str | None = None


def check_strategy(attention: str, strategy: str) -> None:
    """Refuse unknown names, and a strategy that the attention has no parts for.

    Raises:
        UserError: With the nearest names, or the strategies that would do.
    """
    if attention not in ATTENTIONS:
        raise unknown_name("attention", attention, ATTENTIONS)
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    if STRATEGIES[strategy].needs_parts and not ATTENTIONS[attention].two_part:
        whole = [entry.name for entry in STRATEGIES.values() if not entry.needs_parts]
        two_part = [entry.name for entry in ATTENTIONS.values() if entry.two_part]
        raise UserError(
            f"strategy {strategy!r} needs an attention with a channel part and a spatial part ({', '.join(two_part)}); "
            f"{attention!r} has none. Use strategy {' or '.join(map(repr, whole))}."
        )


def plan(points: Sequence[Point], strategy: str) -> list[Step]:
    """Give every point its step.

    Args:
        points: Attachment points in execution order.
        strategy: One of :data:`csham.attach.STRATEGIES`.

    Raises:
        UserError: The strategy reuses channel weights and no stage has a second point to use them.
    """
    steps = {"sequential": _sequential, "transfer": _transfer}[strategy](points)
    if strategy == "transfer" and not any(step.lends for step in steps):
        raise UserError(
            "strategy 'transfer' needs a stage with two attachment points or more, to use channel weights again; "
            "here every stage has one. Use strategy 'sequential'."
        )
    return steps


def _sequential(points: Sequence[Point]) -> list[Step]:
    return [Step(point, "whole") for point in points]


def _transfer(points: Sequence[Point]) -> list[Step]:
    """Alternate within each stage, beginning with a channel step, whose weights the next point applies again."""
    steps: list[Step] = []
    for point in points:
        previous = steps[-1] if steps else None
        if previous is not None and previous.point.stage == point.stage and previous.part == "channel":
            steps[-1] = Step(previous.point, "channel", lends=True)
            steps.append(Step(point, "spatial", weights_from=previous.point.name))
        else:
            steps.append(Step(point, "channel"))
    return steps
