"""Every attention by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from csham.errors import UserError, unknown_name
from csham.layers.channel import ChannelAttention
from csham.layers.hybrid import CSHAM
from csham.layers.names import ATTENTIONS
from csham.layers.spatial import SpatialAttention

__all__ = ["create_attention"]

_OURS: dict[str, Callable[..., nn.Module]] = {
    "csham": CSHAM,
    "csham_linear": partial(CSHAM, act=None),
    "csham_channel": ChannelAttention,
    "csham_spatial": SpatialAttention,
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
        UserError: An unknown name, or a setting that the layer does not take.
    """
    if name not in ATTENTIONS:
        raise unknown_name("attention", name, ATTENTIONS)
    try:
        if name in _OURS:
            return _OURS[name](channels, **settings)
        from timm.layers import create_attn  # noqa: PLC0415  timm takes seconds to import

        return create_attn(name, channels, **settings)
    except TypeError as err:
        raise UserError(f"create_attention: {name} does not take these settings: {err}.") from err
