"""Every attention by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any

from torch import nn

from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS

__all__ = ["create_attention"]


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
    build = resolve_name(ATTENTIONS[name].layer)
    _check_settings(name, build, settings)
    return build(channels, **settings)


def _check_settings(name: str, build: Callable[..., nn.Module], settings: Mapping[str, Any]) -> None:
    fixed = build.keywords if isinstance(build, partial) else {}
    takes = [setting for setting in inspect.signature(build).parameters if setting not in ("channels", *fixed)]
    unknown = [setting for setting in settings if setting not in takes]
    if unknown:
        raise UserError(
            f"create_attention: {name} does not take these settings: {', '.join(unknown)}. "
            f"It takes: {', '.join(takes)}."
        )
