"""What one run of a network showed: its values, the module calls that gave them, and how they hang together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["ADDITIONS", "CONVOLUTIONS", "LONGEST_BRANCH", "Call", "Trace", "Value"]

CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d", "conv1d", "conv3d", "linear", "_conv_forward"})
_POOLINGS = frozenset(
    {"max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"}
    | {"max_pool2d_with_indices", "adaptive_max_pool2d_with_indices", "boolean_dispatch"}
)
ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
_MERGES = ADDITIONS | {"cat", "concat", "concatenate", "stack"}
LONGEST_BRANCH = 16  # layers


@dataclass
class Value:
    """One tensor that a network computed from its images.

    Attributes:
        index: Its number, in the order of computation; 0 is the images.
        op: Name of the function that computed it.
        parents: Indices of the values it was computed from.
        shape: Its shape.
        layout: Its axes, such as ``"NCHW"`` or ``"NHWC"``, where that is known.
        filters: Shape of the weight, where a convolution computed it.
        call: Number of the innermost module call during which it was computed.
        hosts: Names of the modules that put it out, the innermost first.
    """

    index: int
    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str | None
    filters: tuple[int, ...]
    call: int
    hosts: list[str] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether it may be a feature map, (B, C, H, W)."""
        return len(self.shape) == 4 and self.layout in ("NCHW", None)

    @property
    def is_conv(self) -> bool:
        """Whether a layer with weights computed it: a convolution or a linear layer."""
        return self.op in CONVOLUTIONS

    @property
    def is_join(self) -> bool:
        """Whether it joins feature maps, by addition or side by side."""
        return self.is_map and self.op in _MERGES and len(self.parents) > 1

    @property
    def is_pooled(self) -> bool:
        """Whether it is the result of pooling, or has nothing left to pool."""
        return self.op in _POOLINGS or self.shape[2:] == (1, 1)

    def takes_channels_of(self, parent: Value) -> bool:
        """Whether it is some of the channels of a feature map."""
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
    """What one run of a network showed.

    Attributes:
        values: Every tensor computed from the images, in order.
        calls: Every module call, in order; 0 is the network's own.
        weighted: Names of the modules with parameters.
        containers: Names of the modules that run their children one after another, whatever these are.
        output: Index of the network's output; of several the one computed last; None if none came from the images.
    """

    values: list[Value]
    calls: list[Call]
    weighted: frozenset[str]
    containers: frozenset[str]
    output: int | None

    def outputs_of(self, name: str) -> list[int | None]:
        """What each call of a module put out."""
        return [call.output for call in self.calls if call.name == name]

    def trunk(self) -> list[int]:
        """Values through which everything flows on its way from the images to the output, in order."""
        if self.output is None:
            return []
        above = [0]  # the nearest value through which everything flows, for each value
        for value in self.values[1:]:
            meeting = value.parents[0]
            for parent in value.parents[1:]:
                while meeting != parent:
                    meeting, parent = sorted((meeting, parent))  # noqa: PLW2901  both climb until they meet
                    parent = above[parent]  # noqa: PLW2901
            above.append(meeting)
        chain = [self.output]
        while chain[-1]:
            chain.append(above[chain[-1]])
        return chain[::-1]

    def straight_up(self, value: Value) -> Iterator[Value]:
        """Climb from a value to what it was computed from, as long as that is one value."""
        yield value
        while len(value.parents) == 1:
            value = self.values[value.parents[0]]
            yield value

    def layers_above(self, end: Value) -> dict[int, int]:
        """Count the layers on the longest way from each value above ``end`` to it, as far as a branch may reach."""
        longest = {end.index: 0}
        for index in range(end.index, 0, -1):
            value = self.values[index]
            if longest.get(index, LONGEST_BRANCH + 1) <= LONGEST_BRANCH:
                for parent in value.parents:
                    longest[parent] = max(longest.get(parent, 0), longest[index] + value.is_conv)
        return longest
