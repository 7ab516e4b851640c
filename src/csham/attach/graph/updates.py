"""Layers with an update beside them, ``base(x) + B(A(x))``, as LoRA trains it: one layer each, as before the update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from csham.attach.graph.values import ADDITIONS, DROPOUTS, Value

__all__ = ["merge_updates"]

_SCALINGS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__"})
_COPIES = frozenset({"to", "type", "float", "half", "bfloat16", "clone"})
_BETWEEN_LAYERS = DROPOUTS | _SCALINGS | _COPIES


def merge_updates(values: Sequence[Value]) -> None:
    """Write every sum of a layer and its update down as that layer.

    An update is two layers or more of what the layer is given, without a norm or an activation: with them the sum would
    be a residual block whose shortcut is a projection; without, it is one linear layer, whatever the rest of the
    network is.

    Args:
        values: Those of a network, in order; changed in place.
    """
    users = Counter(parent for value in values for parent in value.parents)
    for total in values:
        base, update = _two_ways(values, total)
        used_once = all(users[part.index] == 1 for part in (*base, *update))
        if used_once and _layers(base) == 1 < _layers(update):
            layer = base[-1]
            total.op, total.filters, total.parents = layer.op, layer.filters, layer.parents
            for part in (*base, *update):
                part.op = "part"


def _two_ways(values: Sequence[Value], total: Value) -> tuple[list[Value], list[Value]]:
    """Return what lies between a sum's operands and what both are made of, that of fewer layers first."""
    if total.op not in ADDITIONS or [values[parent].shape for parent in total.parents] != [total.shape] * 2:
        return [], []
    one, other = (_way_up(values, parent) for parent in total.parents)
    start = next((above for above in one if above in other), None)
    base, update = sorted((_from_first_layer(way, start) for way in (one, other)), key=_layers)
    return base, update


def _way_up(values: Sequence[Value], end: int) -> list[Value]:
    """Climb from a value over layers, and what only rescales, to the first that is computed otherwise."""
    way = [values[end]]
    while len(way[-1].parents) == 1 and (way[-1].is_conv or way[-1].op in _BETWEEN_LAYERS):
        way.append(values[way[-1].parents[0]])
    return way


def _from_first_layer(way: list[Value], start: Value | None) -> list[Value]:
    """Cut a way at its start, and at the first layer: what comes before that may serve others too."""
    below = [] if start is None else way[: way.index(start)]
    while below and not below[-1].is_conv:
        below.pop()
    return below


def _layers(way: Sequence[Value]) -> int:
    return sum(value.is_conv for value in way)
