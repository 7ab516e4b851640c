"""Every attention by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from csham.errors import UserError, unknown_name
from csham.layers.a2 import DoubleAttention
from csham.layers.bam import BAM
from csham.layers.channel import ChannelAttention
from csham.layers.ema import EMA
from csham.layers.hybrid import CSHAM
from csham.layers.names import ATTENTIONS
from csham.layers.scsa import SCSA
from csham.layers.scse import SCSE
from csham.layers.shuffle import ShuffleAttention
from csham.layers.simam import SimAM
from csham.layers.spatial import SpatialAttention
from csham.layers.triplet import TripletAttention

__all__ = ["create_attention"]

_OURS: dict[str, Callable[..., nn.Module]] = {
    "csham": CSHAM,
    "csham_linear": partial(CSHAM, act=None),
    "csham_channel": ChannelAttention,
    "csham_spatial": SpatialAttention,
    "simam": SimAM,
    "bam": BAM,
    "a2": DoubleAttention,
    "triplet": TripletAttention,
    "shuffle": ShuffleAttention,
    "ema": EMA,
    "scsa": SCSA,
    "scse": SCSE,
}


def create_attention(name: str, channels: int, **settings: Any) -> nn.Module:
    """Build an attention layer by its name.

    Args:
        name: One of ``csham list attentions``.
        channels: Channels of the feature map it will see.
        **settings: What that layer takes, ``device`` and ``dtype`` among it.

    Returns:
        A module from (B, channels, H, W) to the same.

    Raises:
        UserError: An unknown name, a setting that the layer does not take, or channels that it cannot do.

    Example:
        >>> create_attention("bam", 64, reduction=8)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """
    if name not in ATTENTIONS:
        raise unknown_name("attention", name, ATTENTIONS)
    build = _builder(name)
    _check_settings(name, build, settings)
    return build(channels, **settings)


def _builder(name: str) -> Callable[..., nn.Module]:
    if name in _OURS:
        return _OURS[name]
    from csham.layers.from_timm import FROM_TIMM  # noqa: PLC0415  timm takes seconds to import

    return FROM_TIMM[name]


def _check_settings(name: str, build: Callable[..., nn.Module], settings: Mapping[str, Any]) -> None:
    fixed = build.keywords if isinstance(build, partial) else {}
    takes = [setting for setting in inspect.signature(build).parameters if setting not in ("channels", *fixed)]
    unknown = [setting for setting in settings if setting not in takes]
    if unknown:
        raise UserError(
            f"create_attention: {name} does not take these settings: {', '.join(unknown)}. "
            f"It takes: {', '.join(takes)}."
        )
