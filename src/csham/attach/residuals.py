"""Find the residual additions of a traced network: which operand is the branch, which the shortcut."""

from __future__ import annotations

from dataclasses import dataclass

from csham.attach.values import ADDITIONS, LONGEST_BRANCH, Trace, Value

__all__ = ["Branch", "residual_branches"]

# Layers on a shortcut: a projection, which GhostNet makes of two. A longer way round is no shortcut.
_LONGEST_SHORTCUT = 2


@dataclass(frozen=True)
class Branch:
    """A residual branch: the values at its start and its end, its layers, and the additions within it."""

    start: int
    end: int
    layers: int
    within: list[int]


def residual_branches(trace: Trace) -> dict[int, Branch]:
    """Find each residual addition with its branch, in order."""
    found: dict[int, Branch] = {}
    for value in trace.values:
        operands = [trace.values[parent] for parent in value.parents]
        alike = len(operands) == 2 and all(v.is_map and v.shape == value.shape for v in operands)
        if value.op in ADDITIONS and alike and value.index not in trace.skips:
            one, other = operands
            branch = _as_branch(trace, one, other, found) or _as_branch(trace, other, one, found)
            if branch is not None and (one.layout or other.layout):
                for inner in branch.within:
                    del found[inner]
                found[value.index] = branch
    return found


def _as_branch(trace: Trace, shortcut: Value, end: Value, found: dict[int, Branch]) -> Branch | None:
    """Return the branch that ends with ``end``, if it starts from what ``shortcut`` is, or is a projection of."""
    ways = trace.layers_above(end)
    layers, sliced = 0, False
    for value in trace.straight_up(shortcut):
        if value.index in ways:
            within = [addition for addition in found if addition in ways and addition > value.index]
            # Sums of single layers are one layer to be (RepVGG, RepGhost); around whole blocks there is no branch.
            blocks = any(found[addition].layers > 1 for addition in within)
            # A slice is no way round a branch that itself works on slices: those are groups within a branch.
            group = sliced and not layers and not _is_used_whole(trace, value, ways)
            long_enough = layers < ways[value.index] <= LONGEST_BRANCH
            found_one = long_enough and not blocks and not group
            return Branch(value.index, end.index, ways[value.index], within) if found_one else None
        layers += value.is_conv
        sliced = sliced or (bool(value.parents) and value.takes_channels_of(trace.values[value.parents[0]]))
        if layers > _LONGEST_SHORTCUT:
            return None
    return None


def _is_used_whole(trace: Trace, fork: Value, ways: dict[int, int]) -> bool:
    users = (trace.values[index] for index in ways if fork.index in trace.values[index].parents)
    return any(not user.takes_channels_of(fork) for user in users)
