"""Statistics over the positions: mean and, if wanted, maximum of each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csham.ops.operators.carry import CARRY, SCALED, Carry, carry, carry_of, scaled
from csham.ops.operators.operator import Operator, float32

__all__ = ["channel_pool"]


def channel_pool(kernels: str, x: Tensor, affine: Tensor | None, maximum: bool) -> tuple[Tensor, Tensor | None, Carry]:
    """Pool over the positions.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        affine: As of :mod:`csham.ops.operators.normed`.
        maximum: True to find the maximum too.

    Returns:
        Mean and maximum (None if not wanted), (B, C), float32, and the tie to the scaling.
    """
    out = _operator(kernels, x, affine, maximum)
    return out.mean, out.max if maximum else None, carry_of(out)


def _fake(x: Tensor, affine: Tensor | None, maximum: bool) -> tuple[Tensor, ...]:
    B, C = x.shape[:2]
    return float32(x, B, C), float32(x, B, C) if maximum else float32(x, 0), *carry(x)


def _backward_fake(grad_z: Tensor | None, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    return {"x": given.x, "affine": given.affine, "max": out.max if given.maximum else None}, {}


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    x = saved.x
    grad_mean = float32(x, *x.shape[:2]).zero_() if grads.mean is None else grads.mean.contiguous()
    grad_max = None if saved.max is None or grads.max is None else grads.max.contiguous()
    maxima = None if grad_max is None else saved.max
    return {"x": kernels.channel_pool_backward.default(*scaled(saved, grads), grad_mean, grad_max, maxima)}


_operator = Operator(
    __name__,
    # Without `maximum` the second result is empty.
    f"(Tensor x, Tensor? affine, bool maximum) -> (Tensor mean, Tensor max, {CARRY})",
    f"({SCALED}, Tensor grad_mean, Tensor? grad_max, Tensor? max) -> Tensor",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
