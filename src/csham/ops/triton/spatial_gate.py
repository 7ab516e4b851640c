"""Spatial weights from the statistics over the channels: convolution, batch norms, activation, sum, sigmoid.

forward    position = conv([mean; max]);  s = sigmoid(act(norm(position)) + upsample(norm(neighbors)))
backward   dlogits = ds s (1 - s);  the activation, the norm and the convolution backwards, and for the neighbours the
           sum over the positions that each value was repeated to
saved      s, position and the means and variances that were used

One-channel maps, 1 / C of what x is: torch's own operators, as few as they come.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["spatial_gate", "spatial_gate_backward"]


class _Norm(NamedTuple):
    """One batch norm of a single channel; ``mean`` and ``var`` are not read in training."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    eps: float

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised map and the mean and biased variance of the batch (zeros where not in training)."""
        if self.training and x.numel() > 0:
            var, mean = torch.var_mean(x, (0, 1, 2, 3), correction=0)
            mean, var = mean.view(1), var.view(1)
            return self._affine(x, mean, var), mean, var
        zero = x.new_zeros(2)
        mean, var = zero[:1].clone(), zero[1:].clone()
        return self._affine(x, *(mean, var) if self.training else (self.mean, self.var)), mean, var

    def _affine(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        assert mean is not None
        assert var is not None
        x = (x - mean) * (var + self.eps).rsqrt()
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias

    def backward(self, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the map, the weight and the bias; ``mean`` and ``var`` are those that were used."""
        assert self.mean is not None
        assert self.var is not None
        rstd = (self.var + self.eps).rsqrt()
        normal = (x - self.mean) * rstd
        grad_weight, grad_bias = (grad * normal).sum().view(1), grad.sum().view(1)
        grad_x = grad
        if self.training and x.numel() > 0:
            grad_x = grad - (grad_bias + normal * grad_weight) / x.numel()
        scale = rstd if self.weight is None else rstd * self.weight
        return grad_x * scale, grad_weight, grad_bias


def spatial_gate(
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    neighbor_norm_weight: Tensor | None,
    neighbor_norm_bias: Tensor | None,
    neighbor_norm_mean: Tensor | None,
    neighbor_norm_var: Tensor | None,
    training: bool,
    neighbor_training: bool,
    eps: float,
    neighbor_eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Implement the operator ``spatial_gate``."""
    position = torch.conv2d(torch.cat([mean, max], 1), weight, padding=weight.shape[-1] // 2).contiguous()
    norm = _Norm(norm_weight, norm_bias, norm_mean, norm_var, training, eps)
    logits, *statistics = norm.apply(position)
    if relu:
        logits = logits.relu()
    if neighbors is None:
        statistics += [torch.zeros_like(statistics[0]), torch.zeros_like(statistics[0])]
    else:
        norm = _Norm(
            neighbor_norm_weight,
            neighbor_norm_bias,
            neighbor_norm_mean,
            neighbor_norm_var,
            neighbor_training,
            neighbor_eps,
        )
        normal, *neighbor_statistics = norm.apply(neighbors)
        statistics += neighbor_statistics
        if neighbors.numel() > 0:
            rows, columns = _sources(position, neighbors)
            logits = logits + normal[:, :, rows[:, None], columns]
    return logits.sigmoid(), position, *statistics


def spatial_gate_backward(
    grad_s: Tensor,
    s: Tensor,
    position: Tensor,
    mean: Tensor,
    max: Tensor,
    neighbors: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    neighbor_norm_weight: Tensor | None,
    neighbor_norm_bias: Tensor | None,
    neighbor_norm_mean: Tensor | None,
    neighbor_norm_var: Tensor | None,
    training: bool,
    neighbor_training: bool,
    eps: float,
    neighbor_eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Implement the operator ``spatial_gate_backward``."""
    grad_logits = grad_s * s * (1 - s)
    norm = _Norm(norm_weight, norm_bias, norm_mean, norm_var, training, eps)
    grad_norm = grad_logits
    if relu:
        grad_norm = torch.where(norm._replace(training=False).apply(position)[0] <= 0, 0.0, grad_logits)
    grad_position, *grad_norms = norm.backward(grad_norm, position)
    grad_statistics, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_position, torch.cat([mean, max], 1), weight, None, [1, 1], [weight.shape[-1] // 2] * 2, [1, 1], False,
        [0, 0], 1, [True, True, False],
    )  # fmt: skip
    grad_mean, grad_max = (part.clone(memory_format=torch.contiguous_format) for part in grad_statistics.split(1, 1))
    if neighbors is None or neighbors.numel() == 0:
        grad_neighbors = mean.new_empty(0) if neighbors is None else torch.zeros_like(neighbors)
        grad_norms += [mean.new_zeros(1), mean.new_zeros(1)]
    else:
        norm = _Norm(
            neighbor_norm_weight,
            neighbor_norm_bias,
            neighbor_norm_mean,
            neighbor_norm_var,
            neighbor_training,
            neighbor_eps,
        )
        grad_neighbors, *rest = norm.backward(_gathered(grad_logits, neighbors), neighbors)
        grad_norms += rest
    return grad_mean, grad_max, grad_neighbors, grad_weight.contiguous(), torch.cat(grad_norms)


def _sources(x: Tensor, neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """Return which row and column of ``neighbors`` each of ``x`` repeats."""
    rows, columns = (
        (2 * torch.arange(target, device=x.device) + 1) * source // (2 * target)
        for source, target in zip(neighbors.shape[2:], x.shape[2:], strict=True)
    )
    return rows, columns


def _gathered(grad: Tensor, neighbors: Tensor) -> Tensor:
    """Add up the gradients of each value's repetitions, in a fixed order: two matrix products."""
    rows, columns = (
        torch.nn.functional.one_hot(source, length).to(grad.dtype)
        for source, length in zip(_sources(grad, neighbors), neighbors.shape[2:], strict=True)
    )
    return rows.t() @ grad @ columns
