"""The mathematics of one call, as functions of tensors; nothing here knows of networks.

``reference`` is plain PyTorch and the definition that every faster implementation is tested against. ``attention``
has the whole steps that ``layers`` calls, and ``choice`` says which implementation runs them: the C++ kernels of
``cpu``, the Triton kernels of ``triton``, both behind the operators of ``operators``, or the reference. Start with
:func:`hybrid_attention`.
"""

from csham.ops.attention import (
    ChannelParameters,
    Pooled,
    SpatialParameters,
    channel_attention,
    finish,
    follow,
    has_kernels,
    hybrid_attention,
    pool_channels,
    pool_positions,
    running_statistics,
    spatial_attention,
    spatial_weights_of,
)
from csham.ops.choice import Choice, choose, use_kernels
from csham.ops.operators.normed import Source, source_of
from csham.ops.reference import channel_weights, scale, spatial_weights

__all__ = [
    "ChannelParameters",
    "Choice",
    "Pooled",
    "Source",
    "SpatialParameters",
    "channel_attention",
    "channel_weights",
    "choose",
    "finish",
    "follow",
    "has_kernels",
    "hybrid_attention",
    "pool_channels",
    "pool_positions",
    "running_statistics",
    "scale",
    "source_of",
    "spatial_attention",
    "spatial_weights",
    "spatial_weights_of",
    "use_kernels",
]
