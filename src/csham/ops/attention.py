"""Whole attention steps, by kernels where they can and by the reference where they cannot.

Each step reads a map for its statistics, makes weights of them, and multiplies. Done together, the gradient of the map
is written once (:mod:`csham.ops.operators.carry`). With ``shortcut`` a step ends in ``relu(... + shortcut)``, the end
of a residual block, in the same pass over the map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from csham.errors import UserError
from csham.ops import reference
from csham.ops.calls import has_hooks, is_bare
from csham.ops.choice import kernels, kernels_setting
from csham.ops.operators.carry import Carry
from csham.ops.operators.channel_pool import channel_pool
from csham.ops.operators.hybrid_pool import hybrid_pool
from csham.ops.operators.normed import Source
from csham.ops.operators.position_pool import position_pool
from csham.ops.operators.scale import scale
from csham.ops.operators.spatial_gate import Norm, spatial_gate
from csham.ops.reference import Activation, Filter
from csham.ops.tracing import exporting

__all__ = [
    "ChannelParameters",
    "Pooled",
    "SpatialParameters",
    "channel_attention",
    "finish",
    "follow",
    "has_kernels",
    "hybrid_attention",
    "pool_channels",
    "pool_positions",
    "running_statistics",
    "spatial_attention",
    "spatial_weights_of",
]

_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


class ChannelParameters(NamedTuple):
    """Arguments of :func:`csham.ops.channel_weights` after the map."""

    avg_weight: Filter
    avg_bias: Tensor | None
    max_weight: Filter
    max_bias: Tensor | None
    fuse_weight: Filter
    fuse_bias: Tensor | None
    act: Activation


class SpatialParameters(NamedTuple):
    """Arguments of :func:`csham.ops.spatial_weights` after the map."""

    main_weight: Filter
    main_norm: nn.Module
    neighbor_weight: Filter
    neighbor_norm: nn.Module
    act: Activation
    dropout: Activation | None = None


class Pooled(NamedTuple):
    """A map with its statistics, ready to be scaled by weights that were made of them.

    Attributes:
        x: The map, (B, C, H, W).
        mean: (B, C) or (B, 1, H, W).
        max: As ``mean``, or None where it was not asked for.
        kernels: Kernels that computed them, None for the reference.
        carry: Tie between them and the scaling.
        channel_weights: Weights that the kernels multiply ``x`` with besides, (B, C), or None.
        source: What the kernels read: ``x`` as they take it, or what a norm made it of.
    """

    x: Tensor
    mean: Tensor
    max: Tensor | None
    kernels: str | None
    carry: Carry | None
    channel_weights: Tensor | None = None
    source: Source | None = None

    def scale(self, weights: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return ``weights ⊙ x``, or with a shortcut ``relu(weights ⊙ x + shortcut)``; to be called once.

        What was pooled with channel weights is multiplied by them too.

        Args:
            weights: (B, C) or (B, 1, H, W).
            shortcut: Like ``x``.
        """
        if self.kernels is None or self.carry is None or self.source is None:
            return finish(reference.scale(self.x, weights), shortcut)
        if weights.dim() == 2:
            return _scale(self.kernels, self.source, self.carry, shortcut, weights.float())
        w = self.channel_weights
        return _scale(self.kernels, self.source, self.carry, shortcut, w, weights, position_w=w, position_max=self.max)


def channel_attention(
    x: Tensor, parameters: ChannelParameters, shortcut: Tensor | None = None, source: Source | None = None
) -> tuple[Tensor, Tensor]:
    """Apply CSHAM's channel step.

    Args:
        x: Feature map, (B, C, H, W).
        parameters: Its filters and activation.
        shortcut: If given, a map like ``x``, and the result is ``relu(w ⊙ x + shortcut)``.
        source: What ``x`` was made of by a norm, for kernels to read instead.

    Returns:
        ``w ⊙ x`` and the channel weights ``w``, (B, C), to lend to other points.
    """
    chosen = _kernels_for(x, *parameters)
    if chosen is None:
        w = reference.channel_weights(x, *parameters)
        return finish(reference.scale(x, w), shortcut), w
    read = _read(x, source)
    pooled = hybrid_pool(chosen, *read, _filters(parameters), _is_relu(parameters.act))
    return _scale(chosen, read, pooled.carry, shortcut, pooled.w), pooled.w


def spatial_attention(
    x: Tensor,
    parameters: SpatialParameters,
    channel_weights: Tensor | None = None,
    shortcut: Tensor | None = None,
    source: Source | None = None,
) -> Tensor:
    """Apply CSHAM's spatial step, ``s(w ⊙ x) ⊙ w ⊙ x``.

    Args:
        x: Feature map, (B, C, H, W).
        parameters: Its filters, norms and activation.
        channel_weights: ``w``, (B, C), borrowed from another point; None for ones.
        shortcut: As for :func:`channel_attention`.
        source: As for :func:`channel_attention`.
    """
    chosen = _kernels_for(x, *_spatial_parts(parameters))
    if chosen is None:
        if channel_weights is not None:
            x = reference.scale(x, channel_weights)
        return finish(reference.scale(x, reference.spatial_weights(x, *parameters)), shortcut)
    read = _read(x, source)
    w = None if channel_weights is None else channel_weights.float()
    mean, maximum, neighbors, carry = position_pool(chosen, *read, w, _neighbor_weight(x, parameters))
    s = _csham_spatial_weights(chosen, mean, maximum, neighbors, parameters)
    return _scale(chosen, read, carry, shortcut, w, s, position_w=w, position_max=maximum)


def hybrid_attention(
    x: Tensor,
    channel: ChannelParameters,
    spatial: SpatialParameters,
    connection: str = "sequential",
    shortcut: Tensor | None = None,
    source: Source | None = None,
) -> Tensor:
    """Apply both steps of CSHAM.

    Args:
        x: Feature map, (B, C, H, W).
        channel: Filters and activation of the channel step.
        spatial: Filters, norms and activation of the spatial step.
        connection: ``"sequential"``: ``s(w ⊙ x) ⊙ w ⊙ x``; ``"reversed"``: the spatial step first; ``"parallel"``:
            ``s(x) ⊙ w ⊙ x``; ``"reapply"``: ``w ⊙ s(w ⊙ x) ⊙ w ⊙ x``.
        shortcut: As for :func:`channel_attention`.
        source: As for :func:`channel_attention`.
    """
    if connection == "reversed":
        return channel_attention(spatial_attention(x, spatial, source=source), channel, shortcut)[0]
    chosen = _kernels_for(x, *channel, *_spatial_parts(spatial))
    if chosen is None:
        return finish(_hybrid_reference(x, channel, spatial, connection), shortcut)
    read = _read(x, source)
    weighted = connection != "parallel"
    pooled = hybrid_pool(
        chosen, *read, _filters(channel), _is_relu(channel.act), True, weighted, _neighbor_weight(x, spatial)
    )
    s = _csham_spatial_weights(chosen, pooled.mean, pooled.max, pooled.neighbors, spatial)
    w = pooled.w * pooled.w if connection == "reapply" else pooled.w
    position_w = pooled.w if weighted else None
    return _scale(chosen, read, pooled.carry, shortcut, w, s, position_w=position_w, position_max=pooled.max)


def pool_channels(x: Tensor, maximum: bool = False, source: Source | None = None) -> Pooled:
    """Average each channel of a map over its positions, and find its maximum if wanted.

    Args:
        x: Feature map, (B, C, H, W).
        maximum: True to find the maximum.
        source: As for :func:`channel_attention`.
    """
    chosen = _kernels_for(x)
    if chosen is None:
        return Pooled(x, x.mean((2, 3)), x.amax((2, 3)) if maximum else None, None, None)
    read = _read(x, source)
    mean, maxima, carry = channel_pool(chosen, *read, maximum)
    return Pooled(x, mean, maxima, chosen, carry, source=read)


def pool_positions(x: Tensor, channel_weights: Tensor | None = None, source: Source | None = None) -> Pooled:
    """Average each position of ``w ⊙ x`` over its channels, and find its maximum.

    Args:
        x: Feature map, (B, C, H, W).
        channel_weights: ``w``, (B, C); None for ones.
        source: As for :func:`channel_attention`.
    """
    chosen = _kernels_for(x)
    if chosen is None:
        if channel_weights is not None:
            x = reference.scale(x, channel_weights)
        return Pooled(x, x.mean(1, keepdim=True), x.amax(1, keepdim=True), None, None)
    read = _read(x, source)
    w = None if channel_weights is None else channel_weights.float()
    mean, maxima, _, carry = position_pool(chosen, *read, w, None)
    return Pooled(x, mean, maxima, chosen, carry, w, read)


def spatial_weights_of(pooled: Pooled, weight: Tensor, norm: nn.Module, dropout: Activation | None = None) -> Tensor:
    """Compute ``σ(norm(conv([mean; max])))`` from the statistics of :func:`pool_positions`, as CBAM does.

    Args:
        pooled: The statistics.
        weight: Filter over them, (1, 2, k, k), k odd.
        norm: Batch norm of a (B, 1, H, W) map.
        dropout: Between the two.
    """
    assert pooled.max is not None
    parameters = SpatialParameters(weight, norm, weight, norm, _identity, dropout)
    if pooled.kernels is None:
        return reference.spatial_weights_of(pooled.mean, pooled.max, None, weight, norm, norm, _identity, dropout)
    return _spatial_weights(pooled.kernels, pooled.mean, pooled.max, None, parameters)


def has_kernels(x: object) -> bool:
    """Return True if kernels run for ``x``: a feature map (B, C, H, W) of a type they know, no tracer's stand-in."""
    return isinstance(x, Tensor) and x.dim() == 4 and _kernels_for(x) is not None


def finish(y: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return ``relu(y + shortcut)``, or ``y`` where there is no shortcut."""
    return y if shortcut is None else (y + shortcut).relu_()


def _kernels_for(x: Tensor, *parts: Filter | Activation | None) -> str | None:
    """Name the kernels that run for a map and the filters and activations of a step, None for the reference."""
    # An exported graph is of plain operations, and a transform (vmap, jvp) or a tangent must see them.
    tracing = exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if tracing or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    if x.numel() == 0 or not all(_is_known(part) for part in parts if callable(part)):
        return None
    if x.dtype not in _DTYPES["triton"]:
        _refuse_if_forced(x)
        return None
    chosen = kernels(x.device.type)
    if chosen == "reference":
        return None
    if x.dtype not in _DTYPES[chosen]:
        _refuse_if_forced(x)
        return None
    return chosen


def _refuse_if_forced(x: Tensor) -> None:
    setting = kernels_setting()
    if setting in _DTYPES:
        known = " and ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES[setting])
        raise UserError(
            f"the kernels asked for, {setting!r}, work on {known}, got {str(x.dtype).removeprefix('torch.')}. "
            "CSHAM_KERNELS=auto takes the reference where there is no kernel."
        )


def _spatial_parts(parameters: SpatialParameters) -> tuple[Filter, Filter, Activation]:
    return parameters.main_weight, parameters.neighbor_weight, parameters.act


def _is_known(act: Any) -> bool:
    """Return True for an activation that kernels compute; a convolution that is to be called is none."""
    return _is_relu(act) or act is _identity or is_bare(act, nn.Identity)


def _is_relu(act: Any) -> bool:
    return is_bare(act, nn.ReLU)


def _identity(x: Tensor) -> Tensor:
    return x


def _read(x: Tensor, source: Source | None) -> Source:
    return Source(_laid_out(x), None) if source is None else Source(_laid_out(source.x), source.affine)


def _laid_out(x: Tensor) -> Tensor:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    dense = x.clone()  # in the order of its strides
    return dense if dense.is_contiguous(memory_format=torch.channels_last) else dense.contiguous()


def _filters(parameters: Any) -> tuple[Tensor, ...]:  # of a channel step; arrays, where kernels run
    *filters, _ = parameters
    zero = parameters.avg_weight.new_zeros(1)
    return tuple((zero if f is None else f).float().contiguous() for f in filters)


def _neighbor_weight(x: Tensor, parameters: Any) -> Tensor | None:
    return parameters.neighbor_weight.float().contiguous() if min(x.shape[-2:]) >= 2 else None


def _scale(
    chosen: str,
    read: Source,
    carry: Carry,
    shortcut: Tensor | None,
    w: Tensor | None,
    s: Tensor | None = None,
    **more: Any,
) -> Tensor:
    x, more["affine"] = read
    if s is not None:
        s = s.float()
    if shortcut is None:
        return scale(chosen, x, carry, w, s, **more)
    if shortcut.shape != x.shape or shortcut.dtype != x.dtype:
        return finish(scale(chosen, x, carry, w, s, **more), shortcut)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shortcut = shortcut.contiguous(memory_format=layout)
    return scale(chosen, x, carry, w, s, shortcut=shortcut, relu=True, **more)


def _hybrid_reference(x: Tensor, channel: ChannelParameters, spatial: SpatialParameters, connection: str) -> Tensor:
    w = reference.channel_weights(x, *channel)
    if connection == "parallel":
        return reference.scale(reference.scale(x, w), reference.spatial_weights(x, *spatial))
    weighted = reference.scale(x, w)
    y = reference.scale(weighted, reference.spatial_weights(weighted, *spatial))
    return reference.scale(y, w) if connection == "reapply" else y


def _csham_spatial_weights(
    chosen: str, mean: Tensor, maximum: Tensor, neighbors: Tensor | None, parameters: SpatialParameters
) -> Tensor:
    s = _spatial_weights(chosen, mean, maximum, neighbors, parameters)
    if neighbors is not None:
        return s
    return reference.with_zero_gradients(s, parameters.neighbor_weight, parameters.neighbor_norm)


def _spatial_weights(chosen: str, mean: Tensor, maximum: Tensor, neighbors: Tensor | None, parameters: Any) -> Tensor:
    main, norm, _, neighbor_norm, act, dropout = parameters
    if dropout is not None or not (_is_plain(norm) and _is_plain(neighbor_norm)):
        # Norms that see more than this process, dropout and the like: torch's own.
        dtype = main.dtype
        given = (mean.to(dtype), maximum.to(dtype), None if neighbors is None else neighbors.to(dtype))
        return reference.spatial_weights_of(*given, main, norm, neighbor_norm, act, dropout)
    training = _in_training(norm, mean)
    neighbor_training = neighbors is not None and _in_training(neighbor_norm, neighbors)
    gate = spatial_gate(
        chosen,
        mean,
        maximum,
        neighbors,
        main.float().contiguous(),
        _norm(norm, training),
        _norm(neighbor_norm, neighbor_training, read=neighbors is not None),
        _is_relu(act),
    )
    batches = [(norm, gate.norm_mean, gate.norm_var, mean.numel())] if training else []
    if neighbor_training and neighbors is not None:
        batches.append((neighbor_norm, gate.neighbor_mean, gate.neighbor_var, neighbors.numel()))
    _follow(chosen, batches)
    s: Tensor = gate.s
    return s


def _follow(chosen: str, batches: list[tuple[Any, Tensor, Tensor, int]]) -> None:
    """Do what :func:`follow` does with each norm, given mean and biased variance of so many values."""
    unbiased = [count / (count - 1) for *_, count in batches]
    norms = [norm for norm, *_ in batches]
    if chosen != "triton" or not all(0 < norm.momentum < 1 for norm in norms):
        for (norm, mean, var, _), factor in zip(batches, unbiased, strict=True):
            follow(norm, mean, var * factor)
    elif norms:
        running = [t for norm in norms for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
        found = [one.detach() for _, mean, var, _ in batches for one in (mean, var)]
        rates = ([float(norm.momentum) for norm in norms], [hasattr(norm, "averaging_rate") for norm in norms])
        torch.ops.csham_triton.follow(running, found, unbiased, *rates)


def _is_plain(norm: Any) -> bool:
    """Return True if a norm is torch's batch norm and nothing else, with running statistics as kernels keep them."""
    return (
        (type(norm) is nn.BatchNorm2d or getattr(norm, "is_plain_batch_norm", False))
        and norm.running_mean is not None
        and norm.track_running_stats
        and norm.running_mean.dtype == torch.float32
        and norm.momentum is not None
        and not has_hooks(norm)
    )


def _in_training(norm: Any, x: Tensor) -> bool:
    # A single value is normalised by the running statistics.
    return norm.training and x.numel() > 1


def _norm(norm: Any, training: bool, read: bool = True) -> Norm:
    weight, bias = (None if part is None else part.float() for part in (norm.weight, norm.bias))
    mean, var = running_statistics(norm) if read and not training else (norm.running_mean, norm.running_var)
    return Norm(weight, bias, mean, var, training, norm.eps)


def running_statistics(norm: Any) -> tuple[Tensor, Tensor]:
    """Return a norm's running mean and variance, to normalise by.

    Where there may be a gradient they are copies, which it finds again after other batches have moved the norm's own.
    """
    mean, var = norm.running_mean, norm.running_var
    if not torch.is_grad_enabled() or exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return mean, var
    return mean.clone(), var.clone()


def follow(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Count a batch and move a norm's running statistics towards the batch's.

    Args:
        norm: A batch norm; one with ``averaging_rate`` says how far, any other does what torch's does.
        mean: Of each channel, (C,).
        var: Of each channel, (C,), unbiased.
    """
    norm.num_batches_tracked.add_(1)
    with torch.no_grad():
        rate = norm.averaging_rate() if hasattr(norm, "averaging_rate") else norm.momentum
        if rate is None:
            rate = 1 / norm.num_batches_tracked
        for running, batch in ((norm.running_mean, mean), (norm.running_var, var)):
            running.lerp_(batch.to(running.dtype), rate.to(running.dtype) if isinstance(rate, Tensor) else rate)
