"""Positions in a traced network: residual branches, and ends of these, of blocks and of stages; the last map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

from csham.attach.graph.hosts import Ends, around_joins, host_of, outermost_at, outputs_at, within_call
from csham.attach.graph.values import LONGEST_BRANCH, SUMS, Trace, Value

__all__ = ["auto_ends", "block_ends", "last_map", "residual_branches", "residual_ends", "stage_ends"]

# Least share of a network's layers that lie in its residual branches, or joined ones, where it is made of those. Blocks
# that change the shape and do not add are more than two thirds of some MobileNets.
_RESIDUAL, _JOINED = 0.15, 0.33
# Layers on a shortcut: a projection, which GhostNet makes of two. A longer way round is no shortcut.
_LONGEST_SHORTCUT = 2


@dataclass(frozen=True)
class Branch:
    """A residual branch: the values at its start and its end, its layers, and the additions within it."""

    start: int
    end: int
    layers: int
    within: list[int]


def auto_ends(trace: Trace) -> Ends:
    """Find the ends of residual branches where the network is made of those, else the ends of its blocks."""
    branches = residual_branches(trace)
    names, lost = residual_ends(trace) if _is_residual(trace, branches) else ([], [])
    return (_with_decoder(trace, names, branches), lost) if names else block_ends(trace)


def residual_ends(trace: Trace) -> Ends:
    """Find the modules that put out the end of a residual branch, before the addition.

    An addition of two feature maps is residual if one of them, the shortcut, is the value that the other, the branch,
    was computed from, or a projection of that; so is another, to such a sum, of what was computed from the same value.
    Additions within a branch, such as those that join parallel branches, feature groups (Res2Net) or resolutions
    (HRNet), are not.
    """
    return outputs_at(trace, sorted({branch.end for branch in residual_branches(trace).values()}))


def block_ends(trace: Trace) -> Ends:
    """Find the modules that put out a block's result: the addition with its activation, or what stands in its place.

    Where no block adds, a block is what joins parallel branches on the way from the images to the output (Inception,
    Fire, dense block, shuffle unit); in a plain chain of layers it is a convolution with its norm and activation. Where
    none of these is most of the network, as in a U-Net, it is the smallest module of several layers on that way.
    """
    branches, joins = residual_branches(trace), _joins(trace)
    if _is_residual(trace, branches):
        names, lost = around_joins(trace, list(branches))
        return _with_decoder(trace, names, branches), lost
    if _share(trace, joins.items()) >= _JOINED:
        names, lost = around_joins(trace, list(joins))
        if names:
            return _with_decoder(trace, names, joins), lost
    if joins or trace.skips.intersection(trace.trunk()):
        names, lost = _module_ends(trace)
        if names:
            return names, lost
    return outputs_at(trace, [unit[-1] for unit in _conv_units(trace)])


def stage_ends(trace: Trace) -> Ends:
    """Find the last block at every resolution, on the way from the images to the output.

    Where the blocks of a resolution lie beside that way (CSPNet, DLA), it is the last value on it of that resolution.
    """
    names, lost = block_ends(trace)
    ends = {trace.outputs_of(name)[-1] or 0: name for name in names}
    trunk = [trace.values[index] for index in trace.trunk() if trace.values[index].is_map]
    beside = {trace.values[end].shape[2:] for end in ends.keys() - {value.index for value in trunk}}
    last_blocks: list[str] = []
    for resolution, group in groupby(trunk, key=lambda value: value.shape[2:]):
        values = list(group)
        blocks = [ends[value.index] for value in values if value.index in ends]
        if not blocks and resolution in beside:
            blocks = [name for value in values if not value.is_pooled and (name := host_of(trace, value))]
        last_blocks += blocks[-1:]
    return last_blocks, lost


def last_map(trace: Trace) -> Ends:
    """Find the module that puts out the last feature map before the head, which pools, flattens or convolves it."""
    blocks = {trace.outputs_of(name)[-1]: name for name in block_ends(trace)[0]}
    for index in reversed(trace.trunk()):
        value = trace.values[index]
        if index and _is_end(trace, value) and value.op != "pad":
            names, lost = ([blocks[index]], []) if index in blocks else outputs_at(trace, [index])
            if names or value.layout:  # what no module puts out may be no map, but boxes, where its axes are unknown
                return names, lost
    return [], []


def residual_branches(trace: Trace) -> dict[int, Branch]:
    """Find each residual addition with its branch, in order."""
    branches: dict[int, Branch] = {}
    for value in trace.values:
        operands = [trace.values[parent] for parent in value.parents]
        alike = len(operands) == 2 and all(v.is_map and v.shape == value.shape for v in operands)
        if value.op in SUMS and alike and value.index not in trace.skips | trace.head:
            one, other = operands
            pairs = ((one, other), (other, one))
            found = (_as_branch(trace, shortcut, end, branches) for shortcut, end in pairs)
            more = (_as_another(trace, total, end, branches) for total, end in pairs)
            branch = next((branch for branch in (*found, *more) if branch is not None), None)
            if branch is not None and (one.layout or other.layout):
                for inner in branch.within:
                    del branches[inner]
                branches[value.index] = branch
    return branches


def _as_branch(trace: Trace, shortcut: Value, end: Value, branches: dict[int, Branch]) -> Branch | None:
    """Return the branch that ends with ``end``, if it starts from what ``shortcut`` is, or is a projection of."""
    ways = trace.layers_above(end)
    layers, sliced = 0, False
    for value in trace.straight_up(shortcut):
        if value.index in ways:
            within = [addition for addition in branches if addition in ways and trace.leads_to(value, addition)]
            # Sums of single layers are one layer to be (RepVGG, RepGhost); around whole blocks there is no branch.
            blocks = any(branches[addition].layers > 1 for addition in within)
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


def _as_another(trace: Trace, total: Value, end: Value, branches: dict[int, Branch]) -> Branch | None:
    """Return the branch that ends with ``end``, if it starts where that of a residual sum does: ``x + a(x) + b(x)``."""
    if total.index not in branches:
        return None
    return _as_branch(trace, trace.values[branches[total.index].start], end, branches)


def _is_used_whole(trace: Trace, fork: Value, ways: dict[int, int]) -> bool:
    users = (trace.values[index] for index in ways if fork.index in trace.values[index].parents)
    return any(not user.takes_channels_of(fork) for user in users)


def _is_residual(trace: Trace, branches: Mapping[int, Branch]) -> bool:
    """Return True if residual branches are what a network is made of, not a few among blocks that join otherwise."""
    share = _share(trace, [(branch.end, branch.start) for branch in branches.values()])
    return share >= max(_RESIDUAL, _share(trace, _joins(trace).items()) / 2)


def _joins(trace: Trace) -> dict[int, int]:
    """Find what joins parallel branches, on the way to the output, and the value on that way before each."""
    before = {join: start for start, join in pairwise(trace.trunk()) if trace.values[join].is_join}
    maps = {join: start for join, start in before.items() if trace.values[join].layout and join not in trace.skips}
    return {join: start for join, start in maps.items() if _has_layers(trace, start, join)}


def _share(trace: Trace, ways: Iterable[tuple[int, int]]) -> float:
    """Say how much of the longest way through the network these ways, from their ends to their starts, are."""
    return sum(trace.depths[end] - trace.depths[start] for end, start in ways) / max(1, *trace.depths)


def _with_decoder(trace: Trace, names: list[str], joins: Iterable[int]) -> list[str]:
    """Add the blocks of a decoder, which may be others than the encoder's."""
    # What adds is a feature pyramid: all of it but its sums are heads.
    skips = [i for i in sorted(trace.skips) if trace.values[i].op not in SUMS]
    if not skips:
        return names
    more, _ = _module_ends(trace, skips[0], list(joins))
    return sorted(dict.fromkeys([*names, *more]), key=lambda name: trace.outputs_of(name)[-1] or 0)


def _module_ends(trace: Trace, after: int = 0, taken: list[int] | None = None) -> Ends:
    """Find the smallest modules of several layers on the way to the output; of a resolution without any the last layer.

    Args:
        trace: One run of a network.
        after: The value after which to look.
        taken: Additions whose blocks are not meant.
    """
    taken = taken or []
    trunk = [index for index in trace.trunk() if index > after]
    ends = _ends_of_modules(trace, {*trunk, *_after_skips(trace, after)}, taken)
    names = {end: outermost_at(trace, end, ends) for end in ends}
    units = {unit[-1] for unit in _conv_units(trace)}
    lost = []
    for level in _levels(trace, trunk, taken):
        alone = [index for index in level if index in units and not trace.values[index].enlarges]
        if alone and not names.keys() & set(level) and not set(taken) & set(level):
            last_layer, missed = outputs_at(trace, alone[-1:])
            names |= dict.fromkeys(alone[-1:], *last_layer) if last_layer else {}
            lost += missed
    return [name for _, name in sorted(names.items()) if name is not None], lost


def _after_skips(trace: Trace, after: int) -> set[int]:
    """Find what only layers make of a skip connection's join: in a U-Net++ some lie beside the way to the output."""
    users = Counter(parent for value in trace.values for parent in value.parents)
    made_of_skips: set[int] = set()
    for value in trace.values[after:]:
        joined = value.index in trace.skips and value.op not in SUMS
        goes_on = len(value.parents) == 1 and users[value.parents[0]] == 1 and value.parents[0] in made_of_skips
        if joined or goes_on:
            made_of_skips.add(value.index)
    return made_of_skips


def _ends_of_modules(trace: Trace, trunk: set[int], taken: list[int]) -> list[int]:
    """Find what the smallest modules of several layers put out on the trunk."""
    layers = [value.index for value in trace.values if value.is_layer]
    calls: dict[int, list[int]] = {}  # what a module puts out, and the calls that do
    for number, call in reversed(list(enumerate(trace.calls))):
        if number and call.output in trunk and _is_end(trace, trace.values[call.output]):
            several = len({trace.depths[layer] for layer in within_call(trace, number, layers)}) > 1
            inner = [end for end in calls if end != call.output and within_call(trace, number, [end])]
            if several and not inner and not within_call(trace, number, taken):
                calls.setdefault(call.output, []).append(number)
    return sorted(calls)


def _is_end(trace: Trace, value: Value) -> bool:
    return value.is_map and not value.is_pooled and value.index not in trace.head


def _levels(trace: Trace, trunk: list[int], taken: list[int]) -> list[list[int]]:
    """Cut a way where the resolution changes and where something joins it, but for the additions of blocks."""
    levels: list[list[int]] = []
    before = None
    for value in (trace.values[index] for index in trunk):
        size = value.shape[2:] if value.is_map else None
        if size != before or (value.is_join and value.index not in taken) or not levels:
            levels.append([])
        levels[-1].append(value.index)
        before = size
    return levels


def _has_layers(trace: Trace, start: int, end: int) -> bool:
    return any(value.is_conv for value in trace.values[start + 1 : end])


def _conv_units(trace: Trace) -> list[list[int]]:
    """Cut a chain of layers into convolutions, each with the norm and activation that follow it, without the head's."""
    units: list[list[int]] = []
    inside = depthwise = False
    size: tuple[int, ...] = ()
    for value in (trace.values[index] for index in trace.trunk()):
        if not value.is_map or value.is_pooled or value.is_join or value.index in trace.head:
            inside = False
        elif value.is_conv:
            size = value.shape[2:]
            if not (inside and depthwise):  # a depthwise convolution and the pointwise one that follows are one
                units.append([])
            several = min(value.shape[1], *trace.values[value.parents[0]].shape[1:2]) > 1
            inside, depthwise = True, several and value.filters[1:2] == (1,)
        elif value.shape[2:] != size or value.op == "pad":  # made larger or smaller, or to be where that is needed
            inside = False
        if inside:
            units[-1].append(value.index)
    return units
