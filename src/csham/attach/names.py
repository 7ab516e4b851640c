"""Which strategies and positions there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["POSITIONS", "STRATEGIES", "PositionName", "StrategyName"]


@dataclass(frozen=True)
class StrategyName:
    """One connection strategy as a user names it.

    Attributes:
        name: What ``attach`` and ``--strategy`` take.
        summary: What stands at each attachment point.
        source: Where it comes from.
        needs_parts: Whether it needs an attention with a channel part and a spatial part.
    """

    name: str
    summary: str
    source: str
    needs_parts: bool


@dataclass(frozen=True)
class PositionName:
    """One kind of attachment point as a user names it.

    Attributes:
        name: What ``attach`` and ``--position`` take.
        summary: Where in a network it is.
        source: Where it comes from.
    """

    name: str
    summary: str
    source: str


STRATEGIES = {
    entry.name: entry
    for entry in (
        StrategyName(
            "sequential",
            "the whole attention at every point (CSHAM: channel step, then spatial step)",
            "the authors' released code",
            needs_parts=False,
        ),
        StrategyName(
            "transfer",
            "points of a stage alternate: channel step, then spatial step that applies the same channel weights again",
            "Pan et al., ICPR 2022, abstract, as this project reads it",
            needs_parts=True,
        ),
    )
}

POSITIONS = {
    entry.name: entry
    for entry in (
        PositionName(
            "residual",
            "end of every residual branch, before the addition",
            "the authors' released code",
        ),
    )
}
