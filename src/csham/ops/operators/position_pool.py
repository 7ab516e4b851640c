"""Statistics over the channels of ``w ⊙ x``: mean and maximum of each position, and the neighbour term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csham.ops.operators.carry import CARRY, SCALED, Carry, carry, carry_of, scaled
from csham.ops.operators.operator import Operator, contiguous, float32, none_if_empty, or_zeros

__all__ = ["fake_statistics", "neighbor_shape", "position_pool", "statistics_gradients"]


def position_pool(
    kernels: str, x: Tensor, affine: Tensor | None, w: Tensor | None, neighbor_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Carry]:
    """Pool ``w ⊙ x`` over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        affine: As of :mod:`csham.ops.operators.normed`.
        w: Channel weights, (B, C), float32; None for ones.
        neighbor_weight: 3x3 filter over the channels, (1, C, 3, 3), float32; None for no neighbour term.

    Returns:
        Mean and maximum, (B, 1, H, W), the neighbour term before its norm (or None), float32, and the tie to the
        scaling.
    """
    out = _operator(kernels, x, affine, w, neighbor_weight)
    return out.mean, out.max, None if neighbor_weight is None else out.neighbors, carry_of(out)


def neighbor_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of the neighbour term of ``x``."""
    return (x.shape[0], 1, (x.shape[2] // 2 + 1) // 2, (x.shape[3] // 2 + 1) // 2)


def fake_statistics(x: Tensor, neighbor_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, maximum and neighbour term without data."""
    B, _, H, W = x.shape
    neighbors = float32(x, 0) if neighbor_weight is None else float32(x, *neighbor_shape(x))
    return float32(x, B, 1, H, W), float32(x, B, 1, H, W), neighbors


def statistics_gradients(kernels: Any, saved: Any, grads: Any, position_w: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return what backward passes take of these statistics, from the gradient of the mean to the filter.

    Args:
        kernels: Operators of the namespace.
        saved: ``x``, ``affine``, ``max`` and ``neighbor_weight``.
        grads: Gradients of ``mean``, ``max``, ``neighbors`` and the carry.
        position_w: Channel weights of the statistics.
    """
    ties = grads.carry_ties
    if ties is None:  # the scaled map was not used, only its statistics
        zero = torch.zeros_like(saved.x)
        ties = kernels.scale_backward.default(zero, saved.x, saved.affine, None, None, position_w, saved.max, None)[3]
    used = saved.neighbor_weight is not None and grads.neighbors is not None
    return (
        or_zeros(grads.mean, saved.max),
        or_zeros(grads.max, saved.max),
        saved.max,
        ties,
        contiguous(grads.neighbors) if used else None,
        saved.neighbor_weight if used else None,
    )


def _fake(x: Tensor, affine: Tensor | None, w: Tensor | None, neighbor_weight: Tensor | None) -> tuple[Tensor, ...]:
    return *fake_statistics(x, neighbor_weight), *carry(x)


def _backward_fake(
    grad_z: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    position_w: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    neighbor_weight = rest[-1]
    return (
        torch.empty_like(x),
        float32(x, 0) if position_w is None else float32(x, *x.shape[:2]),
        float32(x, 0) if neighbor_weight is None else float32(x, *neighbor_weight.shape),
    )


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    return {**given._asdict(), "max": out.max}, {}


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    statistics = statistics_gradients(kernels, saved, grads, saved.w)
    grad_x, grad_w, grad_neighbor_weight = kernels.position_pool_backward.default(
        *scaled(saved, grads), saved.w, *statistics
    )
    return {
        "x": grad_x,
        "w": none_if_empty(grad_w, saved.w),
        "neighbor_weight": none_if_empty(grad_neighbor_weight, saved.neighbor_weight),
    }


_operator = Operator(
    __name__,
    "(Tensor x, Tensor? affine, Tensor? w, Tensor? neighbor_weight) -> "
    f"(Tensor mean, Tensor max, Tensor neighbors, {CARRY})",
    f"({SCALED}, Tensor? position_w, Tensor grad_mean, Tensor grad_max, Tensor max, Tensor ties, "
    "Tensor? grad_neighbors, Tensor? neighbor_weight) -> (Tensor grad_x, Tensor grad_w, Tensor grad_neighbor_weight)",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
