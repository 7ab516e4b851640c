"""CSHAM in plain PyTorch: the definition.

Source of all functions: Pan, Hu, Liu, Zhou and Guan, "A Channel-Spatial Hybrid Attention Mechanism using Channel Weight
Transfer Strategy", ICPR 2022, doi:10.1109/ICPR56361.2022.9956146; details that the paper leaves open follow the
authors' released TensorFlow code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham.ops.tracing import exporting

__all__ = ["channel_weights", "scale", "spatial_weights", "spatial_weights_of", "with_zero_gradients"]

Activation = Callable[[Tensor], Tensor]
Filter = Tensor | nn.Module
"""Filter of a convolution, or the module that has it and is called."""


def channel_weights(
    x: Tensor,
    avg_weight: Filter,
    avg_bias: Tensor | None,
    max_weight: Filter,
    max_bias: Tensor | None,
    fuse_weight: Filter,
    fuse_bias: Tensor | None,
    act: Activation,
) -> Tensor:
    """Weigh the channels by max-average fusion.

    ``w = σ(act(conv([act(conv(mean_hw x)) ; act(conv(max_hw x))])))``, the convolutions along the channels with zero
    padding. The gradient of a maximum is shared evenly among equal values.

    Args:
        x: Feature map, (B, C, H, W), any floating dtype and memory format, H, W >= 1.
        avg_weight: Filter for the averages, (1, 1, k), k odd; or, here and below, a module to call instead.
        avg_bias: (1,), or None for 0; likewise below.
        max_weight: Filter for the maxima, (1, 1, k).
        max_bias: (1,).
        fuse_weight: Filter that joins the two rows, (1, 2, k).
        fuse_bias: (1,).
        act: ReLU in the authors' layer class, the identity in their functional version.

    Returns:
        Channel weights, (B, C), in (0, 1); in [0.5, 1) where ``act`` is ReLU.
    """
    average = x.mean((2, 3))[:, None]  # (B, 1, C)
    maximum = x.amax((2, 3))[:, None]
    average = act(_convolve(F.conv1d, average, avg_weight, avg_bias))
    maximum = act(_convolve(F.conv1d, maximum, max_weight, max_bias))
    logits = act(_convolve(F.conv1d, torch.cat([average, maximum], 1), fuse_weight, fuse_bias))
    return logits[:, 0].sigmoid()


def spatial_weights(
    x: Tensor,
    main_weight: Filter,
    main_norm: Activation,
    neighbor_weight: Filter,
    neighbor_norm: Activation,
    act: Activation,
    dropout: Activation | None = None,
) -> Tensor:
    """Weigh the positions by what they and their neighbourhood say.

    ``s = σ(act(norm(conv7x7([mean_c x ; max_c x]))) + upsample(norm(conv3x3(avg_pool2x2(x)))))``. On maps with a side
    of one pixel there is nothing to pool and the second term is dropped (ours: the authors' code has no such case).

    Args:
        x: Feature map, (B, C, H, W), any floating dtype and memory format, H, W >= 1.
        main_weight: 7x7 filter over the two statistics, (1, 2, 7, 7); or, here and below, a module as for
            :func:`channel_weights`.
        main_norm: Batch norm of a (B, 1, H, W) map.
        neighbor_weight: 3x3 filter over the pooled channels, (1, C, 3, 3).
        neighbor_norm: Batch norm of a (B, 1, H / 4, W / 4) map.
        act: ReLU in the authors' layer class, the identity in their functional version.
        dropout: Applied between the 7x7 convolution and its norm (the authors' class for MobileNetV2).

    Returns:
        Spatial weights, (B, 1, H, W), in (0, 1).
    """
    neighbors = None
    if min(x.shape[-2:]) >= 2:
        neighbors = _conv3x3_stride2_same(F.avg_pool2d(x, 2), neighbor_weight)
    mean, maximum = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
    weights = spatial_weights_of(mean, maximum, neighbors, main_weight, main_norm, neighbor_norm, act, dropout)
    return weights if neighbors is not None else with_zero_gradients(weights, neighbor_weight, neighbor_norm)


def spatial_weights_of(
    mean: Tensor,
    maximum: Tensor,
    neighbors: Tensor | None,
    main_weight: Filter,
    main_norm: Activation,
    neighbor_norm: Activation,
    act: Activation,
    dropout: Activation | None = None,
) -> Tensor:
    """Weigh the positions by their statistics: what :func:`spatial_weights` does once it has read the map.

    Args:
        mean: Mean over the channels, (B, 1, H, W).
        maximum: Maximum over the channels, (B, 1, H, W).
        neighbors: The convolved neighbourhood before its norm, (B, 1, H / 4, W / 4), or None.
        main_weight: As for :func:`spatial_weights`, and so are the others.
        main_norm: See there.
        neighbor_norm: See there.
        act: See there.
        dropout: See there.

    Returns:
        Spatial weights, (B, 1, H, W), in (0, 1).
    """
    position = _convolve(F.conv2d, torch.cat([mean, maximum], 1), main_weight)
    if dropout is not None:
        position = dropout(position)
    logits = act(main_norm(position))
    if neighbors is not None:
        logits = logits + _upsample_nearest(neighbor_norm(neighbors), mean.shape[-2], mean.shape[-1])
    return logits.sigmoid()


def with_zero_gradients(weights: Tensor, *unused: object) -> Tensor:
    """Give what did not take part in ``weights`` gradients of zero, where it would have none.

    DistributedDataParallel waits for a gradient of every parameter.

    Args:
        weights: Of any shape.
        unused: Parameters, and modules, whose parameters are meant.
    """
    if not torch.is_grad_enabled() or exporting():
        return weights
    for part in unused:
        for parameter in part.parameters() if isinstance(part, nn.Module) else (part,):
            if isinstance(parameter, Tensor) and parameter.requires_grad:
                weights = weights + 0 * parameter.sum().to(weights.dtype)
    return weights


def scale(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply a feature map by its attention weights.

    Args:
        x: Feature map, (B, C, H, W).
        weights: Channel weights, (B, C) or (B, C, 1, 1), spatial weights, (B, 1, H, W), or one for each value, (B, C,
            H, W).

    Returns:
        (B, C, H, W), with the dtype and memory format of ``x``.

    Raises:
        ValueError: ``weights`` are none of the three for this ``x``.
    """
    if weights.shape == x.shape[:2]:
        weights = weights[:, :, None, None]
    elif weights.shape not in ((*x.shape[:2], 1, 1), (x.shape[0], 1, *x.shape[2:]), x.shape):
        raise ValueError(
            f"scale: weights must be channel weights (B, C) = {tuple(x.shape[:2])}, spatial weights (B, 1, H, W) = "
            f"{(x.shape[0], 1, *x.shape[2:])} or full weights (B, C, H, W) = {tuple(x.shape)} to match x, got "
            f"{tuple(weights.shape)}."
        )
    # Under autocast the weights may come in another type than the map, whose type is kept.
    return x * weights.to(x.dtype)


def _convolve(convolve: Callable[..., Tensor], x: Tensor, weight: Filter, bias: Tensor | None = None) -> Tensor:
    """Convolve with zeros around, to the same size."""
    if isinstance(weight, nn.Module):
        return weight(x)
    # torch.jit.trace gives sizes as tensors, which older conv1d refuse
    return convolve(x, weight, bias, padding=int(weight.shape[-1]) // 2)


def _conv3x3_stride2_same(x: Tensor, weight: Filter) -> Tensor:
    """Convolve with stride 2, padded as TensorFlow's SAME: an even side is padded at its end only."""
    height, width = x.shape[-2:]
    x = F.pad(x, (width % 2, 1, height % 2, 1))
    return weight(x) if isinstance(weight, nn.Module) else F.conv2d(x, weight, stride=2)


def _upsample_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat values to (height, width): the source index is ``floor((i + 0.5) * n_src / n_dst)``."""
    # Whole numbers, because F.interpolate's "nearest-exact" rounds in float32 and is off by one at sides like 142.
    rows, columns = (
        (2 * torch.arange(target, device=x.device) + 1) * source // (2 * target)
        for source, target in zip(x.shape[-2:], (height, width), strict=True)
    )
    if exporting():
        # Two Gather of ONNX, which every runtime has; the other would be GatherND on transposed maps.
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, rows[:, None], columns]
