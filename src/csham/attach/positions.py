"""Where each position lies in a traced network: ends of branches, of blocks, of stages, and the map before the head."""

from __future__ import annotations

from itertools import groupby, pairwise

from csham.attach.hosts import Ends, around_joins, host_of, outputs_at
from csham.attach.residuals import residual_additions
from csham.attach.values import ADDITIONS, Trace, Value

__all__ = ["block_ends", "last_map", "residual_ends", "stage_ends", "works_on_tokens"]


def residual_ends(trace: Trace) -> Ends:
    """Find the modules that put out the end of a residual branch, before the addition.

    An addition of two feature maps is residual if one of them, the shortcut, is the value that the other, the branch,
    was computed from, or a projection of that. Additions within a branch, such as those that join parallel branches,
    feature groups (Res2Net) or resolutions (HRNet), are not.
    """
    return outputs_at(trace, [branch for _, branch in residual_additions(trace)])


def block_ends(trace: Trace) -> Ends:
    """Find the modules that put out a block's result: the addition with its activation, or what stands in its place.

    Where no block adds, a block is what joins parallel branches on the way from the images to the output (Inception,
    Fire, dense block, shuffle unit); in a plain chain of layers it is a convolution with its norm and activation.
    """
    additions = [addition for addition, _ in residual_additions(trace)]
    if additions:
        return around_joins(trace, additions)
    trunk = trace.trunk()
    joins = [i for before, i in pairwise(trunk) if trace.values[i].is_join and _has_layers(trace, before, i)]
    names, lost = around_joins(trace, joins)
    return (names, lost) if names else outputs_at(trace, [unit[-1] for unit in _conv_units(trace)])


def stage_ends(trace: Trace) -> Ends:
    """Find the last block at every resolution, on the way from the images to the output.

    Where the blocks of a resolution lie beside that way (CSPNet, DLA), it is the last value on it of that resolution.
    """
    names, lost = block_ends(trace)
    ends = {trace.outputs_of(name)[-1] or 0: name for name in names}
    trunk = [trace.values[index] for index in trace.trunk() if trace.values[index].is_map]
    found: list[str] = []
    for resolution, group in groupby(trunk, key=lambda value: value.shape[2:]):
        values = list(group)
        blocks = [ends[value.index] for value in values if value.index in ends]
        if not blocks and any(trace.values[end].shape[2:] == resolution for end in ends):
            blocks = [name for value in values if not value.is_pooled and (name := host_of(trace, value))]
        found += blocks[-1:]
    return found, lost


def last_map(trace: Trace) -> Ends:
    """Find the module that puts out the feature map which the head pools or flattens."""
    blocks = {trace.outputs_of(name)[-1]: name for name in block_ends(trace)[0]}
    for index in reversed(trace.trunk()):
        value = trace.values[index]
        if index and value.is_map and not value.is_pooled and not _is_class_map(trace, value):
            return ([blocks[index]], []) if index in blocks else outputs_at(trace, [index])
    return [], []


def works_on_tokens(trace: Trace) -> bool:
    """Whether most residual branches carry tokens, (B, N, C) or (B, H, W, C), as a vision transformer's do."""
    tokens = 0
    for value in trace.values:
        if value.op in ADDITIONS and [trace.values[p].shape for p in value.parents] == [value.shape] * 2:
            tokens += len(value.shape) == 3 or (len(value.shape) == 4 and not value.is_map)
    return tokens > len(residual_additions(trace))


def _has_layers(trace: Trace, start: int, end: int) -> bool:
    return any(value.is_conv for value in trace.values[start + 1 : end])


def _is_class_map(trace: Trace, value: Value) -> bool:
    """Whether it holds class scores for each position, as SqueezeNet's last 1x1 convolution gives them."""
    layers = [index for index in trace.trunk() if trace.values[index].is_conv]
    above = [v for v in trace.straight_up(value) if layers and v.index == layers[-1]]
    logits = trace.values[trace.output or 0].shape
    return bool(above) and above[0].filters[2:] == (1, 1) and above[0].filters[:1] == logits[1:2]


def _conv_units(trace: Trace) -> list[list[int]]:
    """Cut a chain of layers into convolutions, each with the norm and activation that follow it, without the head's."""
    units: list[list[int]] = []
    inside = depthwise = False
    for value in (trace.values[index] for index in trace.trunk()):
        if not value.is_map or value.is_pooled or _is_class_map(trace, value):
            inside = False
        elif value.is_conv:
            if not (inside and depthwise):  # a depthwise convolution and the pointwise one that follows are one
                units.append([])
            inside, depthwise = True, value.filters[1:2] == (1,) != value.filters[:1]
        if inside:
            units[-1].append(value.index)
    return units
