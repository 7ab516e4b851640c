"""Which strategies and positions there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["POSITIONS", "STRATEGIES", "StrategyName"]


@dataclass(frozen=True)
class StrategyName(Named):
    """One connection strategy; its summary says what stands at each attachment point.

    Attributes:
        needs_parts: Whether it needs an attention with a channel part and a spatial part.
    """

    needs_parts: bool = False


STRATEGIES = table(
    [
        StrategyName(
            "sequential",
            "the whole attention at every point (CSHAM: channel step, then spatial step)",
            "the authors' released code",
        ),
        StrategyName(
            "transfer",
            "points of a stage alternate: channel step, then spatial step that applies the same channel weights again",
            "Pan et al., ICPR 2022, abstract, as this project reads it",
            needs_parts=True,
        ),
    ]
)

POSITIONS = table(
    [
        Named("residual", "end of every residual branch, before the addition", "the authors' released code"),
    ]
)
