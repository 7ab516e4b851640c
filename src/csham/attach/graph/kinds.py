"""Say on what a network works, where that is not the feature maps, (B, C, H, W), that attention rescales."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from csham.attach.graph.hosts import host_of
from csham.attach.graph.positions import residual_branches
from csham.attach.graph.values import SUMS, Trace, Value

__all__ = ["map_modules", "other_maps", "token_branches", "works_on_tokens", "works_otherwise"]

_DIMENSIONS = {
    1: ("(B, C, L)", "Let it convolve (B, C, 1, L) with Conv2d and kernels (1, k)"),
    3: ("(B, C, D, H, W)", "Choose a network that takes the slices or frames as images, (B * D, C, H, W)"),
}
_LAYERS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


def other_maps(kind: str, model: nn.Module) -> str | None:
    """Say of a network that takes no images that it convolves sequences or volumes, if that is so."""
    convolutions = {d: [n for n, m in model.named_modules() if isinstance(m, kinds)] for d, kinds in _LAYERS.items()}
    # A convolution along the channels (ECA) or over time is often part of a network for images.
    if convolutions[3]:
        return _of_dimension(kind, 3, convolutions[3][0])
    return _of_dimension(kind, 1, convolutions[1][0]) if convolutions[1] and not convolutions[2] else None


def works_otherwise(kind: str, trace: Trace) -> str | None:
    """Say what a network works on, if that is something else than feature maps."""
    first = {dimension: _first_layer(trace, dimension) for dimension in _LAYERS}
    dimension = next((d for d in _DIMENSIONS if first[d] is not None and first[2] is None), None)
    if dimension is not None:
        return _of_dimension(kind, dimension, str(first[dimension]))
    if not works_on_tokens(trace):
        return None
    if _mixes_by_convolution(trace):
        return (
            f"the maps of {kind} are (B, H, W, C), and channel and spatial attention rescale (B, C, H, W)."
            f"{_can_be_named(map_modules(trace, trace.trunk()))} Or choose a network that keeps its channels second."
        )
    return (
        f"{kind} is a vision transformer or mixer: its residual branches carry tokens, not feature maps "
        "(B, C, H, W), which is what channel and spatial attention rescale. Choose a convolutional network, or "
        "name modules that put out feature maps with points=."
    )


def works_on_tokens(trace: Trace) -> bool:
    """Return True if most residual branches carry tokens, (B, N, C) or (B, H, W, C), and no block is among maps."""
    branches = residual_branches(trace)
    # A single layer is no block, but how many transformers tell their tokens where they are.
    blocks = any(branch.layers > 1 for branch in branches.values())
    return len(token_branches(trace)) > len(branches) and not blocks


def token_branches(trace: Trace) -> list[Value]:
    """Find the additions of tokens, (B, N, C) or (B, H, W, C), to tokens."""
    alike = (v for v in trace.values if v.op in SUMS and [trace.values[p].shape for p in v.parents] == [v.shape] * 2)
    return [v for v in alike if len(v.shape) == 3 or (len(v.shape) == 4 and not v.is_map)]


def map_modules(trace: Trace, values: Iterable[int]) -> list[str]:
    """Name, for every size of the feature maps among these values, the module that puts the last of that size out."""
    maps = [value for value in (trace.values[index] for index in values) if value.layout == "NCHW" and value.parents]
    named = {value.shape: name for value in maps if not value.is_pooled and (name := host_of(trace, value))}
    return list(named.values())


def _first_layer(trace: Trace, dimension: int) -> str | None:
    ops = (f"conv{dimension}d", f"conv_transpose{dimension}d")
    return next((trace.calls[value.call].name for value in trace.values if value.op in ops), None)


def _of_dimension(kind: str, dimension: int, name: str) -> str:
    maps, instead = _DIMENSIONS[dimension]
    return (
        f"{kind} has {dimension}-D convolutions ({name or kind}): its maps are {maps}, and channel and spatial "
        f"attention rescale (B, C, H, W). {instead}."
    )


def _can_be_named(names: Iterable[str]) -> str:
    words = ", ".join(names)
    return f" These of its modules put such maps out and can be named with points=: {words}." if words else ""


def _mixes_by_convolution(trace: Trace) -> bool:
    """Return True if most tokens are in rows and columns, and what is added to them was convolved there."""
    branches = token_branches(trace)
    convolved = [
        value
        for value in branches
        if len(value.shape) == 4
        and any(v.op == "conv2d" for v in trace.values[min(value.parents) : max(value.parents)])
    ]
    return 3 * len(convolved) >= len(branches)
