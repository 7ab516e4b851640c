"""Variance of each channel over the positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csham.ops.operators.operator import Operator, float32


def variance_pool(kernels: str, x: Tensor) -> Tensor:
    """Return the biased variance of each channel, (B, C), float32."""
    variance: Tensor = _operator(kernels, x).variance
    return variance


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return float32(x, *x.shape[:2]), float32(x, *x.shape[:2])


def _backward_fake(x: Tensor, mean: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    return {"x": given.x, "mean": out.mean}, {}


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    return {"x": kernels.variance_pool_backward.default(saved.x, saved.mean, grads.variance.contiguous())}


_operator = Operator(
    __name__,
    "(Tensor x) -> (Tensor variance, Tensor mean)",
    "(Tensor x, Tensor mean, Tensor grad) -> Tensor",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
