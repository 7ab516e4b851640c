"""CSHAM's channel weights and then, if wanted, the statistics over the channels, of ``w ⊙ x`` or of ``x``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from csham.ops.operators.carry import CARRY, SCALED, Carry, carry, carry_of, scaled
from csham.ops.operators.operator import Operator, contiguous, float32, none_if_empty
from csham.ops.operators.position_pool import fake_statistics, statistics_gradients

__all__ = ["HybridPooled", "hybrid_pool"]

_FILTERS = ("avg_weight", "avg_bias", "max_weight", "max_bias", "fuse_weight", "fuse_bias")


class HybridPooled(NamedTuple):
    """Channel weights, and the statistics over the channels: mean and maximum (B, 1, H, W) and the neighbour term."""

    w: Tensor
    mean: Tensor
    max: Tensor
    neighbors: Tensor | None
    carry: Carry


def hybrid_pool(
    kernels: str,
    x: Tensor,
    affine: Tensor | None,
    filters: tuple[Tensor, ...],
    relu: bool,
    positions: bool = False,
    weighted: bool = True,
    neighbor_weight: Tensor | None = None,
) -> HybridPooled:
    """Compute CSHAM's channel weights, and with ``positions`` pool ``w ⊙ x`` over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        affine: As of :mod:`csham.ops.operators.normed`.
        filters: Weight and bias of the convolutions avg, max and fuse, float32.
        relu: True if ReLU follows each convolution.
        positions: True to pool over the channels.
        weighted: True to pool ``w ⊙ x``, not ``x``.
        neighbor_weight: 3x3 filter over the channels, (1, C, 3, 3), float32; None for no neighbour term.
    """
    out = _operator(kernels, x, affine, *filters, relu, positions, weighted, neighbor_weight)
    return HybridPooled(out.w, out.mean, out.max, None if neighbor_weight is None else out.neighbors, carry_of(out))


def _fake(x: Tensor, affine: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *_filters, _relu, positions, _weighted, neighbor_weight = rest
    channels = (float32(x, *x.shape[:2]) for _ in range(3))
    over_channels = fake_statistics(x, neighbor_weight) if positions else (float32(x, 0) for _ in range(3))
    return *channels, *over_channels, *carry(x)


def _backward_fake(
    grad_z: Tensor | None, x: Tensor, affine: Tensor | None, w: Tensor | None, s: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    filters, neighbor_weight = rest[:6], rest[-1]
    grad_neighbor_weight = float32(x, 0) if neighbor_weight is None else float32(x, *neighbor_weight.shape)
    return torch.empty_like(x), float32(x, sum(f.numel() for f in filters)), grad_neighbor_weight


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    tensors = dict(zip(("x", "affine", *_FILTERS), given[:8], strict=True))
    statistics = {"w": out.w, "channel_mean": out.channel_mean, "channel_max": out.channel_max, "max": out.max}
    settings = {"relu": given.relu, "positions": given.positions, "weighted": given.weighted}
    return {**tensors, "neighbor_weight": given.neighbor_weight, **statistics}, settings


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    filters = [getattr(saved, name) for name in _FILTERS]
    statistics: tuple[Tensor | None, ...] = (None,) * 6
    if saved.positions:
        statistics = statistics_gradients(kernels, saved, grads, saved.w if saved.weighted else None)
    channels = (saved.w, saved.channel_mean, saved.channel_max, contiguous(grads.w))
    grad_x, grad_filters, grad_neighbor_weight = kernels.hybrid_pool_backward.default(
        *scaled(saved, grads), *filters, saved.relu, saved.weighted, *channels, *statistics
    )
    parts = grad_filters.split([f.numel() for f in filters])
    shaped = (part.view(f.shape) for part, f in zip(parts, filters, strict=True))
    return {
        "x": grad_x,
        **dict(zip(_FILTERS, shaped, strict=True)),
        "neighbor_weight": none_if_empty(grad_neighbor_weight, saved.neighbor_weight),
    }


_filters = ", ".join(f"Tensor {name}" for name in _FILTERS)
_operator = Operator(
    __name__,
    f"(Tensor x, Tensor? affine, {_filters}, bool relu, bool positions, bool weighted, Tensor? neighbor_weight) -> "
    f"(Tensor w, Tensor channel_mean, Tensor channel_max, Tensor mean, Tensor max, Tensor neighbors, {CARRY})",
    # grad_filters: of the six, flattened, one after the other.
    f"({SCALED}, {_filters}, bool relu, bool weighted, Tensor channel_w, Tensor channel_mean, Tensor channel_max, "
    "Tensor? grad_channel_w, Tensor? grad_mean, Tensor? grad_max, Tensor? max, Tensor? ties, Tensor? grad_neighbors, "
    "Tensor? neighbor_weight) -> (Tensor grad_x, Tensor grad_filters, Tensor grad_neighbor_weight)",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
