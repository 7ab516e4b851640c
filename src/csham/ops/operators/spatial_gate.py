"""Spatial weights from the statistics over the channels: convolution, batch norms, activation, sum, sigmoid."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from csham.ops.operators.operator import Operator, float32

__all__ = ["Norm", "spatial_gate"]


class Norm(NamedTuple):
    """Batch norm of one channel.

    Attributes:
        weight: (1), or None for 1.
        bias: (1), or None for 0.
        mean: Running mean, (1); not read in training.
        var: Running variance, (1); likewise.
        training: True to normalise by the batch.
        eps: Added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    eps: float


def spatial_gate(
    kernels: str,
    mean: Tensor,
    maximum: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    norm: Norm,
    neighbor_norm: Norm,
    relu: bool,
) -> Any:
    """Compute spatial weights from the statistics over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        mean: (B, 1, H, W), float32.
        maximum: (B, 1, H, W), float32.
        neighbors: The neighbour term or None.
        weight: Filter over the two statistics, (1, 2, k, k), float32.
        norm: Norm after it.
        neighbor_norm: Norm of the neighbour term.
        relu: True if ReLU follows the norm.

    Returns:
        Weights ``s``, (B, 1, H, W), and ``norm_mean``, ``norm_var``, ``neighbor_mean``, ``neighbor_var``, (1): mean and
        biased variance of the batch, where a norm is in training.
    """
    arrays = [(one.weight, one.bias, one.mean, one.var) for one in (norm, neighbor_norm)]
    settings = (norm.training, neighbor_norm.training, norm.eps, neighbor_norm.eps, relu)
    return _operator(kernels, mean, maximum, neighbors, weight, *arrays[0], *arrays[1], *settings)


def _fake(mean: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return float32(mean, *mean.shape), float32(mean, *mean.shape), *(float32(mean, 1) for _ in range(4))


def _backward_fake(
    grad_s: Tensor,
    s: Tensor,
    position: Tensor,
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    grad_neighbors = float32(mean, 0) if neighbors is None else float32(mean, *neighbors.shape)
    return (
        float32(mean, *mean.shape),
        float32(mean, *mean.shape),
        grad_neighbors,
        float32(mean, *weight.shape),
        float32(mean, 4),
    )


def _save(given: Any, out: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    tensors = dict(zip(_SAVED, (out.s, out.position, *given[:12]), strict=True))
    if given.training:
        tensors |= {"norm_mean": out.norm_mean, "norm_var": out.norm_var}
    if given.neighbors is None:  # the norm that is not used may be the other one, whose statistics move on
        tensors |= dict.fromkeys(name for name in tensors if name.startswith("neighbor_norm"))
    elif given.neighbor_training:
        tensors |= {"neighbor_norm_mean": out.neighbor_mean, "neighbor_norm_var": out.neighbor_var}
    return tensors, {"settings": given[12:]}


def _gradients(kernels: Any, saved: Any, grads: Any) -> dict[str, Tensor | None]:
    grad_mean, grad_max, grad_neighbors, grad_weight, grad_norms = kernels.spatial_gate_backward.default(
        grads.s.contiguous(), *(getattr(saved, name) for name in _SAVED), *saved.settings
    )
    norms = [getattr(saved, name) for name in _NORM_PARAMETERS]
    of_norms = zip(_NORM_PARAMETERS, norms, grad_norms.split(1), strict=True)
    return {
        "mean": grad_mean,
        "max": grad_max,
        "neighbors": None if saved.neighbors is None else grad_neighbors,
        "weight": grad_weight,
        **{name: None if norm is None else grad.view(norm.shape) for name, norm, grad in of_norms},
    }


_NORM_PARAMETERS = ("norm_weight", "norm_bias", "neighbor_norm_weight", "neighbor_norm_bias")
_NORMS = tuple(f"{norm}_{part}" for norm in ("norm", "neighbor_norm") for part in ("weight", "bias", "mean", "var"))
# In the order of the backward pass.
_SAVED = ("s", "position", "mean", "max", "neighbors", "weight", *_NORMS)
_given = (
    f"Tensor mean, Tensor max, Tensor? neighbors, Tensor weight, {', '.join(f'Tensor? {name}' for name in _NORMS)}, "
    "bool training, bool neighbor_training, float eps, float neighbor_eps, bool relu"
)
_operator = Operator(
    __name__,
    # Where a norm is in training, its mean and variance are not read, and those of the batch (biased) are returned.
    f"({_given}) -> "
    "(Tensor s, Tensor position, Tensor norm_mean, Tensor norm_var, Tensor neighbor_mean, Tensor neighbor_var)",
    # The means and variances are those that the forward pass used. grad_norms: of _NORM_PARAMETERS.
    f"(Tensor grad_s, Tensor s, Tensor position, {_given}) -> "
    "(Tensor grad_mean, Tensor grad_max, Tensor grad_neighbors, Tensor grad_weight, Tensor grad_norms)",
    fake=_fake,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
