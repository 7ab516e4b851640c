"""Names of the strategies and positions, and what of them cannot work; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import Attention, find_attention
from csham.settings import check_choice

__all__ = ["POSITIONS", "STRATEGIES", "StrategyName", "check_position", "check_strategy"]


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


def check_position(position: str, points: object = None) -> None:
    """Refuse an unknown position, and one beside ``points``, which says where too.

    Raises:
        UserError: With the nearest names.
    """
    check_choice("position", position, POSITIONS)
    if points is not None and position != "auto":
        raise UserError(f"attach: both position={position!r} and points= say where. Leave one out.")


def check_strategy(attention: Attention, strategy: str, period: int | None = None) -> None:
    """Refuse unknown names, a strategy that the attention has no parts for, and a period that means nothing.

    Raises:
        UserError: With the nearest names, or the strategies that would do.
    """
    entry = find_attention(attention)
    check_choice("strategy", strategy, STRATEGIES)
    if STRATEGIES[strategy].needs_parts and not entry.two_part:
        whole = [entry.name for entry in STRATEGIES.values() if not entry.needs_parts]
        two_part = [entry.name for entry in ATTENTIONS.values() if entry.two_part]
        raise UserError(
            f"strategy {strategy!r} needs an attention with a channel part and a spatial part ({', '.join(two_part)}); "
            f"{entry.name!r} has none. Use strategy {' or '.join(map(repr, whole))}."
        )
    if period is None:
        return
    if isinstance(period, bool) or not isinstance(period, int) or period < 2:
        raise UserError(f"period must be a whole number of at least 2 points, got {period!r}.")
    if strategy != "transfer":
        raise UserError(f"period is a setting of strategy 'transfer', not of {strategy!r}. Leave it out.")
