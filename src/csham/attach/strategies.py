"""Strategies: which step stands at which point, and which point lends its channel weights to which. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from csham.attach.names import STRATEGIES
from csham.errors import UserError

if TYPE_CHECKING:
    from csham.attach.graph.points import Point

__all__ = ["Step", "plan"]

_DEFAULT_PERIOD = 2


@dataclass(frozen=True)
class Step:
    """Attention that a strategy puts at one point.

    Attributes:
        point: Point where it goes.
        part: ``"channel"`` or ``"spatial"``, one part of the attention alone; ``"whole"``, the attention as its authors
            connect it; or the name of the strategy that connects its parts.
        lends: True if its channel weights are used again by later points.
        weights_from: Name of the point whose channel weights it applies first, or None.
    """

    point: Point
    part: str
    lends: bool = False
    weights_from: str | None = None


def plan(points: Sequence[Point], strategy: str, period: int | None = None) -> list[Step]:
    """Give every point its step.

    Args:
        points: Attachment points in execution order.
        strategy: One of :data:`csham.attach.STRATEGIES`.
        period: For ``"transfer"``: points to each channel step, whose weights serve those that follow; default 2.

    Returns:
        The steps in execution order; points that a strategy leaves alone have none.

    Raises:
        UserError: The strategy alternates, and no stage has a second point.
    """
    stages = [list(group) for _, group in groupby(points, key=lambda point: point.stage)]
    if STRATEGIES[strategy].needs_pairs and all(len(stage) == 1 for stage in stages):
        raise UserError(
            f"strategy {strategy!r} needs a stage with two attachment points or more; here every stage has one. "
            "Use strategy 'sequential', or name more modules with points=."
        )
    return [step for stage in stages for step in _plan_stage(stage, strategy, period or _DEFAULT_PERIOD)]


def _plan_stage(points: Sequence[Point], strategy: str, period: int) -> list[Step]:
    if strategy == "entry":
        return [Step(points[0], "whole")]
    if strategy == "alternate":
        return [Step(point, ("channel", "spatial")[number % 2]) for number, point in enumerate(points)]
    if strategy == "transfer":
        return _transfer(points, period)
    return [Step(point, "whole" if strategy == "sequential" else strategy) for point in points]


def _transfer(points: Sequence[Point], period: int) -> list[Step]:
    """Give the first point of each period the channel step, whose weights the points that follow apply again."""
    steps: list[Step] = []
    for start in range(0, len(points), period):
        lender, *borrowers = points[start : start + period]
        steps.append(Step(lender, "channel", lends=bool(borrowers)))
        steps += [Step(point, "spatial", weights_from=lender.name) for point in borrowers]
    return steps
