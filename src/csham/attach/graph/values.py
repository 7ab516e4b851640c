"""Values of one run of a network, the module calls that gave them, and how they hang together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ADDITIONS", "CONVOLUTIONS", "DROPOUTS", "LONGEST_BRANCH", "NORMS", "SUM", "SUMS", "Call", "Trace", "Value"]

CONVOLUTIONS = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "_conv_forward",
        "deform_conv2d",
    }
)
_POOLINGS = frozenset(
    {"max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"}
    | {"max_pool2d_with_indices", "adaptive_max_pool2d_with_indices", "boolean_dispatch"}
)
ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
# Where it has two maps of its own size, in networks that write ``x - branch(x)`` or ``lerp(x, branch(x), weight)``.
SUM = "sum of maps"
SUMS = ADDITIONS | {SUM}
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_MERGES = SUMS | _CONCATENATIONS
NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm"})
# What may stand between a network's last layer and its output; names without their underscores.
_FINISHES = frozenset(
    {"tanh", "sigmoid", "softmax", "log_softmax", "clamp", "clip", "interpolate", "pixel_shuffle", "getitem", "to"}
    | {"add", "sub", "mul", "div", "truediv", "radd", "rsub", "rmul", "iadd", "isub", "imul", "itruediv", "neg"}
    | {"view", "reshape", "flatten", "squeeze", "float", "contiguous", SUM}
)
DROPOUTS = frozenset({"dropout", "dropout2d", "feature_dropout", "alpha_dropout", "contiguous"})
LONGEST_BRANCH = 16  # convolutions
# A pyramid of poolings has one layer at each size; what lies between the ends of a skip connection has more.
_LAYERS_OF_A_LEVEL = 2
# Layers by which a network may weigh its images before it looks at them.
_LONGEST_GATE = 2


@dataclass
class Value:
    """One tensor that a network computed from its images.

    Attributes:
        index: Its number, in the order of computation; 0 is the images.
        op: Name of the function that computed it.
        parents: Indices of the values it was computed from; without integers, unless it was from these alone.
        shape: Its shape.
        layout: Its axes, such as ``"NCHW"`` or ``"NHWC"``, where that is known.
        filters: Shape of the weight, where a convolution computed it.
        call: Number of the innermost module call during which it was computed.
        hosts: Names of the modules that put it out, the innermost first.
        dtype: Its type.
        handed_on: Those of ``hosts`` that were given it, and put it out as it was.
        uses: For its uses, which of these it had come through by then.
    """

    index: int
    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str | None
    filters: tuple[int, ...]
    call: int
    hosts: list[str] = field(default_factory=list)
    dtype: torch.dtype | None = None
    handed_on: set[str] = field(default_factory=set)
    uses: set[frozenset[str]] = field(default_factory=set)

    def goes_round(self, host: str) -> bool:
        """Return True if some use of it does not come through a host that was given it: U-Nets name their skips so."""
        return host in self.handed_on and any(host not in use for use in self.uses)

    @property
    def is_map(self) -> bool:
        """True if it may be a feature map, (B, C, H, W)."""
        return len(self.shape) == 4 and self.layout in ("NCHW", None)

    @property
    def is_conv(self) -> bool:
        """True if a layer with weights computed it: a convolution or a linear layer."""
        return self.op in CONVOLUTIONS

    @property
    def enlarges(self) -> bool:
        """True if it is a map made larger by a transposed convolution."""
        return self.op == "conv_transpose2d"

    @property
    def is_layer(self) -> bool:
        """True if it is a feature map that a convolution computed, other than to make a map larger."""
        convolved = self.is_conv and self.op != "linear"
        return convolved and self.is_map and not self.is_pooled and not self.enlarges

    @property
    def is_join(self) -> bool:
        """True if it joins feature maps, by a sum or side by side."""
        return self.is_map and self.op in _MERGES and len(self.parents) > 1

    @property
    def is_pooled(self) -> bool:
        """True if it is the result of pooling, or has nothing left to pool."""
        return self.op in _POOLINGS or self.shape[2:] == (1, 1)

    def takes_channels_of(self, parent: Value) -> bool:
        """Return True if it is some of the channels of a feature map."""
        maps = len(self.shape) == len(parent.shape) == 4
        return maps and not self.is_conv and self.shape[1] < parent.shape[1]


@dataclass
class Call:
    """One call of one module: its name, the value it put out (None if not one tensor), and the call around it."""

    name: str
    parent: int
    output: int | None = None


@dataclass
class Trace:
    """Record of one run of a network.

    Attributes:
        values: Every tensor computed from the images, in order.
        calls: Every module call, in order; 0 is the network's own.
        weighted: Names of the modules with parameters.
        containers: Names of the modules that run their children one after another, whatever these are.
        outputs: Indices of the network's outputs, as far as these came from the images, in order.
    """

    values: list[Value]
    calls: list[Call]
    weighted: frozenset[str]
    containers: frozenset[str]
    outputs: tuple[int, ...]

    @property
    def output(self) -> int | None:
        """Index of the network's output; of several the one computed last; None if none came from the images."""
        return self.outputs[-1] if self.outputs else None

    def outputs_of(self, name: str) -> list[int | None]:
        """Return what each call of a module put out."""
        return [call.output for call in self.calls if call.name == name]

    @property
    def is_cramped(self) -> bool:
        """True if convolutions with windows larger than their map left one position, which then looks pooled."""
        ones = (value for value in self.values if value.is_conv and value.is_map and value.shape[2:] == (1, 1))
        return any(value.filters[2:] > self.values[value.parents[0]].shape[2:] for value in ones)

    def trunk(self) -> list[int]:
        """Values through which everything flows on its way from the images to the output, in order.

        Where a skip connection leads past smaller maps, as in a U-Net, everything is what goes through those.
        """
        if self.output is None:
            return []
        chain = [self.output]
        while chain[-1]:
            chain.append(self._flow[0][chain[-1]])
        return chain[::-1]

    @cached_property
    def above_output(self) -> frozenset[int]:
        """The output, and every value that it was computed from."""
        return self._above(self.outputs[-1:])

    @cached_property
    def aside(self) -> list[int]:
        """Values that other outputs alone were computed from, in order."""
        return sorted(self._above(self.outputs) - self.above_output)

    def _above(self, ends: Sequence[int], start: int = 0) -> frozenset[int]:
        """Find some values and what they were computed from, from ``start`` on."""
        above = set(ends)
        for index in range(max(ends, default=0), start, -1):
            if index in above:
                above.update(self.values[index].parents)
        return frozenset(above)

    @cached_property
    def images(self) -> frozenset[int]:
        """The images, and what was made of them without a layer."""
        images = {0}
        for value in self.values[1:]:
            if not value.is_conv and images.issuperset(value.parents):
                images.add(value.index)
        return frozenset(images)

    @cached_property
    def head(self) -> frozenset[int]:
        """What everything flows through from the last layer on, where that makes class scores or a picture of a map."""
        trunk = [self.values[index] for index in self.trunk()]
        last = next((value for value in reversed(trunk) if value.is_conv), None)
        if last is None or not any(value.is_conv for value in self.values[: last.index]):
            return frozenset()
        after = [value for value in trunk if value.index > last.index]
        scores = last.filters[2:] == (1, 1) and last.filters[:1] == trunk[-1].shape[1:2]
        channels = min(last.shape[1:2], trunk[-1].shape[1:2])
        fewer = last.is_map and channels < self.values[last.parents[0]].shape[1:2]
        if (scores and not any(value.op in NORMS for value in after)) or (fewer and all(map(self._finishes, after))):
            return frozenset(value.index for value in (last, *after))
        return frozenset()

    def _finishes(self, value: Value) -> bool:
        return value.op.strip("_") in _FINISHES and len(set(value.parents) - self.images) == 1

    @property
    def skips(self) -> frozenset[int]:
        """Joins of what went through smaller maps with what a skip connection led past them."""
        return self._flow[1]

    @cached_property
    def depths(self) -> list[int]:
        """For each value the layers on the longest way to it."""
        depths = [0]
        for value in self.values[1:]:
            depths.append(max(depths[parent] for parent in value.parents) + value.is_layer)
        return depths

    @cached_property
    def _flow(self) -> tuple[list[int], frozenset[int]]:
        """For each value the nearest one through which everything flows to it; and the joins of skip connections."""
        above, skips = [0], set()
        blocks: set[int] = set()  # sums of a branch and its shortcut
        for value in self.values[1:]:
            start = _meeting(above, value.parents)
            inner = self._inner_way(value, start, above) if value.is_join else None
            if inner is not None:
                skips.add(value.index)
            elif (way := self._way_round(value, start)) is not None:
                inner = way if self._is_network(way, start, above, blocks) else None
                if inner is None and value.op in SUMS and self.depths[way] - self.depths[start] > 1:
                    blocks.add(value.index)
            above.append(start if inner is None else inner)
        return above, frozenset(skips)

    def _way_round(self, value: Value, start: int) -> int | None:
        """Return the operand that went through layers, where the others are what it was computed from, or resized."""
        ways = {parent for parent in value.parents if self.depths[parent] > self.depths[start]}
        if len(ways) != 1 or len(value.parents) == 1 or value.op in _CONCATENATIONS:
            return None
        way = self.values[ways.pop()]
        return way.index if value.is_map and way.is_map and way.shape[2:] == value.shape[2:] else None

    def _is_network(self, end: int, start: int, above: list[int], blocks: set[int]) -> bool:
        """Return True if a way is a network by itself, rather than a block's branch or a gate."""
        layers, within = self.depths[end] - self.depths[start], 0
        while end > start:
            within += end in blocks
            end = above[end]
        return layers > (_LONGEST_GATE if start in self.images else LONGEST_BRANCH) or within > 1

    def _inner_way(self, join: Value, start: int, above: list[int]) -> int | None:
        """Return the deepest operand of a join, if it went through smaller maps and the others are shortcuts."""
        inner = [parent for parent in join.parents if self._goes_deeper(parent, start, join, above)]
        if not inner:
            return None
        deepest = max(inner, key=self.depths.__getitem__)
        layers = [self._layers_on(start, p, _area(join)) for p in join.parents if p not in inner]
        return deepest if layers and max(layers) < (self.depths[deepest] - self.depths[start]) / 2 else None

    def _layers_on(self, start: int, end: int, area: int) -> int:
        """Count the layers on the longest way between two values that avoids maps smaller than ``area``."""
        longest = {end: 0}
        for index in range(end, start, -1):
            value = self.values[index]
            if index in longest and not (value.is_map and 1 < _area(value) < area):
                for parent in value.parents:
                    longest[parent] = max(longest.get(parent, 0), longest[index] + value.is_layer)
        return longest.get(start, 0)

    def _goes_deeper(self, end: int, start: int, join: Value, above: list[int]) -> bool:
        """Return True if an operand went through smaller maps, and there through layers."""
        way = [end]
        while way[-1] > start:
            way.append(above[way[-1]])
        smaller = [i for i in way[:-1] if self.values[i].is_map and 1 < _area(self.values[i]) < _area(join)]
        if not smaller or self.depths[smaller[0]] - self.depths[above[smaller[-1]]] < _LAYERS_OF_A_LEVEL:
            return False
        if join.op not in SUMS or self.depths[end] - self.depths[start] > LONGEST_BRANCH:
            return True
        # A residual branch may work on smaller maps too: one module then, or one that ends with layers.
        after = way[: way.index(smaller[0])]
        return len(self._called_by(join.call, way[:-1])) > 1 and not any(self.values[i].is_conv for i in after)

    def _called_by(self, caller: int, values: list[int]) -> set[int]:
        """Return the calls, of those that a module call made itself, in which values were computed."""
        calls = set()
        for value in values:
            call = self.values[value].call
            while call > caller and self.calls[call].parent != caller:
                call = self.calls[call].parent
            calls.add(call)
        return calls - {caller}

    def straight_up(self, value: Value) -> Iterator[Value]:
        """Climb from a value to what it was computed from, as long as that is one value."""
        yield value
        while len(value.parents) == 1:
            value = self.values[value.parents[0]]
            yield value

    def leads_to(self, start: Value, end: int) -> bool:
        """Return True if a later value was computed from an earlier one, from others too or not."""
        above = self._above([end], start.index)
        return start.index != end and start.index in above

    def layers_above(self, end: Value) -> dict[int, int]:
        """Count the convolutions on the longest way from each value above ``end``, as far as a branch may reach."""
        longest = {end.index: 0}
        for index in range(end.index, 0, -1):
            value = self.values[index]
            if longest.get(index, LONGEST_BRANCH + 1) <= LONGEST_BRANCH:
                for parent in value.parents:
                    longest[parent] = max(longest.get(parent, 0), longest[index] + value.is_conv)
        return longest


def _meeting(above: Sequence[int], values: Sequence[int]) -> int:
    """Return the nearest value through which everything flows to all of these."""
    meeting = values[0]
    for value in values[1:]:
        while meeting != value:
            meeting, value = sorted((meeting, value))  # noqa: PLW2901  both climb until they meet
            value = above[value]  # noqa: PLW2901
    return meeting


def _area(value: Value) -> int:
    return value.shape[2] * value.shape[3]
