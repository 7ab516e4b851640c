"""The operators that the kernels implement, as torch.library knows them: schemas and what they return, without data.

Each exists once for each kind of kernels: ``torch.ops.csham_cpu`` (C++, registered by the library that ``ops.cpu``
builds) and ``torch.ops.csham_triton`` (registered by ``ops.triton``). ``x`` is a feature map (B, C, H, W), contiguous
or channels_last; all other arrays are float32 and contiguous: channel weights and statistics (B, C), spatial ones
(B, 1, H, W), the neighbour term (B, 1, ceil(H // 2 / 2), ceil(W // 2 / 2)).

``carry`` outputs hold no data. They tie a pooling operator to the scaling that follows: ``scale`` hands the gradient of
its output, its weights and what it counted back through them, so that the pooling's backward pass can write the
whole gradient of ``x`` at once. See :mod:`csham.ops.functions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAMESPACES", "SCHEMAS", "carry", "neighbor_shape"]

NAMESPACES = ("csham_cpu", "csham_triton")

_CARRY = "Tensor carry_z, Tensor carry_w, Tensor carry_s, Tensor carry_ties"
_FILTERS = (
    "Tensor avg_weight, Tensor avg_bias, Tensor max_weight, Tensor max_bias, Tensor fuse_weight, Tensor fuse_bias"
)
_NORMS = (
    "Tensor? norm_weight, Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, Tensor? neighbor_norm_weight, "
    "Tensor? neighbor_norm_bias, Tensor? neighbor_norm_mean, Tensor? neighbor_norm_var, bool training, "
    "bool neighbor_training, float eps, float neighbor_eps, bool relu"
)
_SCALED = "Tensor? grad_z, Tensor x, Tensor? w, Tensor? s"

SCHEMAS = {
    # Statistics over the positions. Without `maximum` the second output is empty.
    "channel_pool": f"(Tensor x, bool maximum) -> (Tensor mean, Tensor max, {_CARRY})",
    "channel_pool_backward": f"({_SCALED}, Tensor grad_mean, Tensor? grad_max, Tensor? max) -> Tensor",
    # Statistics over the channels of t = w x, and the 3x3 convolution of its 2x2 averages.
    "position_pool": (
        f"(Tensor x, Tensor? w, Tensor? neighbor_weight) -> (Tensor mean, Tensor max, Tensor neighbors, {_CARRY})"
    ),
    "position_pool_backward": (
        f"({_SCALED}, Tensor? position_w, Tensor grad_mean, Tensor grad_max, Tensor max, Tensor ties, "
        "Tensor? grad_neighbors, Tensor? neighbor_weight) -> "
        "(Tensor grad_x, Tensor grad_w, Tensor grad_neighbor_weight)"
    ),
    # CSHAM's channel weights and then, with `positions`, the statistics over the channels, of w x if `weighted`.
    "hybrid_pool": (
        f"(Tensor x, {_FILTERS}, bool relu, bool positions, bool weighted, Tensor? neighbor_weight) -> "
        f"(Tensor w, Tensor channel_mean, Tensor channel_max, Tensor mean, Tensor max, Tensor neighbors, {_CARRY})"
    ),
    # grad_filters: of the six, flattened, one after the other.
    "hybrid_pool_backward": (
        f"({_SCALED}, {_FILTERS}, bool relu, bool weighted, Tensor channel_w, Tensor channel_mean, "
        "Tensor channel_max, Tensor? grad_channel_w, Tensor? grad_mean, Tensor? grad_max, Tensor? max, Tensor? ties, "
        "Tensor? grad_neighbors, Tensor? neighbor_weight) -> "
        "(Tensor grad_x, Tensor grad_filters, Tensor grad_neighbor_weight)"
    ),
    # y = w s x + shortcut, and its ReLU. What follows is for the backward pass alone.
    "scale": (
        "(Tensor x, Tensor? w, Tensor? s, Tensor? shortcut, bool relu, Tensor? position_w, Tensor? position_max, "
        f"{_CARRY}) -> Tensor"
    ),
    # grad_z: the gradient before the ReLU (empty without y, where it is grad_y).
    # ties: how many channels share the maximum.
    "scale_backward": (
        "(Tensor grad_y, Tensor x, Tensor? w, Tensor? s, Tensor? position_w, Tensor? position_max, Tensor? y) -> "
        "(Tensor grad_z, Tensor grad_w, Tensor grad_s, Tensor ties)"
    ),
    # Spatial weights from the statistics: convolution, batch norms, activation, sum, sigmoid. Where a norm is in
    # training, its mean and variance are not read, and those of the batch (biased) are returned.
    "spatial_gate": (
        f"(Tensor mean, Tensor max, Tensor? neighbors, Tensor weight, {_NORMS}) -> "
        "(Tensor s, Tensor position, Tensor norm_mean, Tensor norm_var, Tensor neighbor_mean, Tensor neighbor_var)"
    ),
    # The means and variances are those that the forward pass used. grad_norms: of weight and bias of
    # the norm, then of the neighbours' norm.
    "spatial_gate_backward": (
        "(Tensor grad_s, Tensor s, Tensor position, Tensor mean, Tensor max, Tensor? neighbors, Tensor weight, "
        f"{_NORMS}) -> (Tensor grad_mean, Tensor grad_max, Tensor grad_neighbors, Tensor grad_weight, "
        "Tensor grad_norms)"
    ),
}


def carry(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what ties a pooling of ``x`` to the scaling of ``x``: one value each, which nobody reads, as an array."""
    B, C, H, W = x.shape
    return (
        _expanded(x, (B, C, H, W), x.dtype),
        _expanded(x, (B, C), torch.float32),
        _expanded(x, (B, 1, H, W), torch.float32),
        _expanded(x, (B, 1, H, W), torch.float32),
    )


def neighbor_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of the neighbour term of ``x``."""
    return (x.shape[0], 1, (x.shape[2] // 2 + 1) // 2, (x.shape[3] // 2 + 1) // 2)


def _expanded(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return x.new_empty((), dtype=dtype).expand(shape)


def _small(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _channel_pool(x: Tensor, maximum: bool) -> tuple[Tensor, ...]:
    B, C = x.shape[:2]
    return (_small(x, B, C), _small(x, B, C) if maximum else _small(x, 0), *carry(x))


def _channel_pool_backward(grad_z: Tensor | None, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _position_pool(x: Tensor, w: Tensor | None, neighbor_weight: Tensor | None) -> tuple[Tensor, ...]:
    return (*_positions(x, neighbor_weight), *carry(x))


def _position_pool_backward(
    grad_z: Tensor | None, x: Tensor, w: Tensor | None, s: Tensor | None, position_w: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    grad_w = _small(x, *x.shape[:2]) if position_w is not None else _small(x, 0)
    return torch.empty_like(x), grad_w, _like(x, rest[-1])


def _hybrid_pool(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_filters, _relu, positions, _weighted, neighbor_weight = rest
    B, C = x.shape[:2]
    over_channels = _positions(x, neighbor_weight) if positions else tuple(_small(x, 0) for _ in range(3))
    return (_small(x, B, C), _small(x, B, C), _small(x, B, C), *over_channels, *carry(x))


def _hybrid_pool_backward(
    grad_z: Tensor | None, x: Tensor, w: Tensor | None, s: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    filters = sum(f.numel() for f in rest[:6])
    return torch.empty_like(x), _small(x, filters), _like(x, rest[-1])


def _scale(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _scale_backward(
    grad_y: Tensor,
    x: Tensor,
    w: Tensor | None,
    s: Tensor | None,
    position_w: Tensor | None,
    position_max: Tensor | None,
    y: Tensor | None,
) -> tuple[Tensor, ...]:
    B, C, H, W = x.shape
    return (
        torch.empty_like(x) if y is not None else x.new_empty(0),
        _small(x, B, C) if w is not None else _small(x, 0),
        _small(x, B, 1, H, W) if s is not None else _small(x, 0),
        _small(x, B, 1, H, W) if position_max is not None else _small(x, 0),
    )


def _spatial_gate(mean: Tensor, max: Tensor, neighbors: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return (torch.empty_like(mean), torch.empty_like(mean), *(_small(mean, 1) for _ in range(4)))


def _spatial_gate_backward(
    grad_s: Tensor,
    s: Tensor,
    position: Tensor,
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(mean),
        torch.empty_like(mean),
        _like(mean, neighbors),
        _like(mean, weight),
        _small(mean, 4),
    )


def _positions(x: Tensor, neighbor_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    B, _, H, W = x.shape
    neighbors = _small(x, 0) if neighbor_weight is None else _small(x, *neighbor_shape(x))
    return _small(x, B, 1, H, W), _small(x, B, 1, H, W), neighbors


def _like(x: Tensor, other: Tensor | None) -> Tensor:
    return _small(x, 0) if other is None else _small(x, *other.shape)


_FAKES: dict[str, Callable[..., Any]] = {name: globals()[f"_{name}"] for name in SCHEMAS}


def _define() -> None:
    for namespace in NAMESPACES:
        for name, schema in SCHEMAS.items():
            operator = f"{namespace}::{name}"
            torch.library.define(
                operator, schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
            )
            torch.library.register_fake(operator, _FAKES[name])


_define()
