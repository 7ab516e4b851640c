"""Scaling by channel and spatial weights, and the end of a residual block: ``relu(w ⊙ s ⊙ x + shortcut)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csham.ops.operators.carry import CARRY, Carry
from csham.ops.operators.operator import Operator, float32, like, none_if_empty

__all__ = ["scale"]


def scale(
    kernels: str,
    x: Tensor,
    carry: Carry,
    w: Tensor | None = None,
    s: Tensor | None = None,
    *,
    affine: Tensor | None = None,
    position_w: Tensor | None = None,
    position_max: Tensor | None = None,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return ``w ⊙ s ⊙ x + shortcut``, and its ReLU if wanted.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: The map that was pooled.
        carry: Result of the pooling.
        w: Channel weights, (B, C), float32; None for ones.
        s: Spatial weights, (B, 1, H, W), float32; None for ones.
        affine: As of :mod:`csham.ops.operators.normed`.
        position_w: The channel weights that the maximum over the channels was taken with.
        position_max: That maximum, whose ties the backward pass counts.
        shortcut: Added, (B, C, H, W), of the type and memory format of ``x``.
        relu: True if ReLU follows.
    """
    y: Tensor = _operator(kernels, x, affine, w, s, shortcut, relu, position_w, position_max, *carry).y
    return y


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _backward_fake(
    grad_y: Tensor,
    x: Tensor,
    affine: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    position_w: Tensor | None,
    position_max: Tensor | None,
    y: Tensor | None,
) -> tuple[Tensor, ...]:
    B, C, H, W = x.shape
    return (
        x.new_empty(0) if y is None else torch.empty_like(x),
        float32(x, 0) if w is None else float32(x, B, C),
        float32(x, 0) if s is None else float32(x, B, 1, H, W),
        float32(x, 0) if position_max is None else float32(x, B, 1, H, W),
    )


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    tensors = {"x": given.x, "affine": given.affine, "w": given.w, "s": given.s, "position_w": given.position_w}
    tensors |= {"position_max": given.position_max, "y": out.y if given.relu else None}
    return tensors, {"has_shortcut": given.shortcut is not None}


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    w, s, y = saved.w, saved.s, saved.y
    grad_y = like(grads.y, saved.x)
    grad_z, grad_w, grad_s, ties = kernels.scale_backward.default(
        grad_y, saved.x, saved.affine, w, s, saved.position_w, saved.position_max, y
    )
    if y is None:
        grad_z = grad_y
    return {
        "w": none_if_empty(grad_w, w),
        "s": none_if_empty(grad_s, s),
        "shortcut": grad_z if saved.has_shortcut else None,
        # The gradient of x is left to the pooling.
        "carry_z": grad_z,
        "carry_w": w,
        "carry_s": s,
        "carry_ties": none_if_empty(ties, saved.position_max),
    }


_operator = Operator(
    __name__,
    # What follows `relu` is for the backward pass alone.
    "(Tensor x, Tensor? affine, Tensor? w, Tensor? s, Tensor? shortcut, bool relu, "
    f"Tensor? position_w, Tensor? position_max, {CARRY}) -> (Tensor y)",
    # grad_z: the gradient before the ReLU (empty without y, where it is grad_y).
    # ties: how many channels share the maximum.
    "(Tensor grad_y, Tensor x, Tensor? affine, Tensor? w, Tensor? s, "
    "Tensor? position_w, Tensor? position_max, Tensor? y) -> "
    "(Tensor grad_z, Tensor grad_w, Tensor grad_s, Tensor ties)",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
