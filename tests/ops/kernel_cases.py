"""Attention steps as functions of leaves, so that every implementation can be asked the same questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csham import ops

STEPS = ("channel", "spatial", "borrowing", "sequential", "parallel", "reapply", "reversed")

# (B, C, H, W): smallest; odd, H != W; one past a vector; a stage of a ResNet; no neighbour term; a row, a column; a
# pooled side of one; planes that no vector divides; two positions to a block; more channels than positions.
SHAPES = (
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (2, 65, 8, 8),
    (3, 16, 32, 32),
    (2, 5, 1, 9),
    (2, 5, 9, 1),
    (3, 8, 3, 2),
    (2, 24, 7, 7),
    (2, 33, 14, 13),
    (2, 16, 3, 12),
    (2, 130, 4, 4),
)


@dataclass
class Case:
    """One step with its leaves."""

    step: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    training: bool = True
    relu: bool = True
    shortcut: bool = False
    ties: bool = False
    kernel_size: int = 3
    seed: int = 0

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that has a gradient, in float64 and drawn from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        B, C, H, W = self.shape

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        k = self.kernel_size
        x = draw(B, C, H, W)
        leaves = {
            "x": (2 * x).round() / 2 if self.ties else x,
            "avg_weight": draw(1, 1, k),
            "avg_bias": draw(1) / 2,
            "max_weight": draw(1, 1, k) / 4,
            "max_bias": draw(1) / 2,
            "fuse_weight": draw(1, 2, k) / 2,
            "fuse_bias": draw(1).abs(),
            "main_weight": draw(1, 2, 7, 7) / 5,
            "norm_weight": draw(1).abs() + 0.5,
            "norm_bias": draw(1),
            "neighbor_weight": draw(1, C, 3, 3) / C**0.5,
            "neighbor_norm_weight": draw(1).abs() + 0.5,
            "neighbor_norm_bias": draw(1),
        }
        if self.step == "borrowing":
            w = draw(B, C).sigmoid()
            leaves["w"] = (4 * w).ceil() / 4 if self.ties else w
        if self.shortcut:
            leaves["shortcut"] = draw(B, C, H, W)
        return leaves


def run(case: Case, kernels: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Run a case forward and backward, and return output, gradients and running statistics by name.

    Args:
        case: What to run.
        kernels: Which implementation.
        dtype: Type of everything, instead of the case's type for maps and float32 for the rest.
    """
    values = {}
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    for name, value in case.leaves().items():
        is_map = name in ("x", "shortcut")
        # Through the case's type, so that both sides compute with the same numbers.
        own = case.dtype if is_map else torch.float32
        leaf = value.to(own).to(dtype or own)
        values[name] = (leaf.to(memory_format=layout) if is_map else leaf).requires_grad_()
    norms = [_norm(values, prefix, case) for prefix in ("norm", "neighbor_norm")]
    with ops.use_kernels(kernels):
        y = _apply(case, values, norms)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = upstream.to(case.dtype).to(y.dtype)
    grads = torch.autograd.grad(y, list(values.values()), upstream, allow_unused=True)
    result = {"y": y.detach()}
    result |= {f"grad_{name}": grad for name, grad in zip(values, grads, strict=True) if grad is not None}
    for name, norm in zip(("norm", "neighbor_norm"), norms, strict=True):
        result |= {f"{name}.mean": norm.running_mean, f"{name}.var": norm.running_var}
    return result


def _norm(values: dict[str, Tensor], prefix: str, case: Case) -> nn.BatchNorm2d:
    from csham.layers.norm import BatchNorm2d

    norm = BatchNorm2d(1, eps=1e-3, momentum=0.01).to(values[f"{prefix}_weight"].dtype)
    del norm.weight, norm.bias
    norm.weight, norm.bias = values[f"{prefix}_weight"], values[f"{prefix}_bias"]
    norm.running_mean.fill_(0.1)
    norm.running_var.fill_(1.5)
    return norm.train(case.training)


def _apply(case: Case, values: dict[str, Tensor], norms: list[nn.BatchNorm2d]) -> Tensor:
    act: Callable[[Tensor], Tensor] = nn.ReLU() if case.relu else nn.Identity()
    names = ("avg_weight", "avg_bias", "max_weight", "max_bias", "fuse_weight", "fuse_bias")
    channel = ops.ChannelParameters(*(values[name] for name in names), act)
    spatial = ops.SpatialParameters(values["main_weight"], norms[0], values["neighbor_weight"], norms[1], act)
    x, shortcut = values["x"], values.get("shortcut")
    if case.step == "channel":
        return ops.channel_attention(x, channel, shortcut)[0]
    if case.step in ("spatial", "borrowing"):
        return ops.spatial_attention(x, spatial, values.get("w"), shortcut)
    return ops.hybrid_attention(x, channel, spatial, case.step, shortcut)


def differences(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each result, relative to the largest value expected."""
    assert got.keys() == expected.keys()
    return {
        name: float((got[name].double() - expected[name].double()).abs().max() / (expected[name].abs().max() + 1e-3))
        for name in expected
    }
