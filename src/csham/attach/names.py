"""Names of the strategies and positions; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["POSITIONS", "STRATEGIES", "StrategyName"]


@dataclass(frozen=True)
class StrategyName(Named):
    """One connection strategy; its summary says what stands at each attachment point.

    Attributes:
        needs_parts: True if it needs an attention with a channel part and a spatial part.
        needs_pairs: True if it needs a stage with two attachment points or more to differ from a simpler one.
    """

    needs_parts: bool = False
    needs_pairs: bool = False


_RELEASED = "the authors' released code"
_ORDERS = "csham, after the orders that CBAM's paper compares"
_ABSTRACT = "Pan et al., ICPR 2022, abstract, as this project reads it"

STRATEGIES = table(
    [
        StrategyName(
            "sequential",
            "the whole attention at every point, as its authors connect it (CSHAM, CBAM: channel step, spatial step)",
            _RELEASED,
        ),
        StrategyName("reversed", "spatial step, then channel step", _ORDERS, needs_parts=True),
        StrategyName("parallel", "both steps' weights from the same map, multiplied", _ORDERS, needs_parts=True),
        StrategyName("channel", "channel step alone", "csham", needs_parts=True),
        StrategyName("spatial", "spatial step alone", "csham", needs_parts=True),
        StrategyName(
            "alternate",
            "points of a stage alternate: channel step, spatial step, channel step, ...",
            _ABSTRACT,
            needs_parts=True,
            needs_pairs=True,
        ),
        StrategyName(
            "transfer",
            "as alternate, and each spatial step first applies the channel weights of the last channel point again",
            _ABSTRACT,
            needs_parts=True,
            needs_pairs=True,
        ),
        StrategyName(
            "reapply",
            "channel step, spatial step, then the same channel weights once more",
            _ABSTRACT,
            needs_parts=True,
        ),
        StrategyName("entry", "the whole attention, at the first point of each stage only", _RELEASED),
    ]
)

POSITIONS = table(
    [
        Named("auto", "residual where the network is made of residual branches, else post", "csham"),
        Named("residual", "end of every residual branch, before the addition", _RELEASED),
        Named(
            "post",
            "end of every block: after its addition, or of each inception module, dense block, layer",
            "csham",
        ),
        Named("stage", "after the last block of each resolution", "csham"),
        Named("last", "on the last feature map, before the head pools it", "csham"),
    ]
)
